package cni

import (
	"context"
	"crypto/sha512"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
)

// The bridge and ptp plugins masquerade with a chain for each pod, whose name is a hash of network and
// container id, and a rule in POSTROUTING that leads there for each address, with both in its comment
// (containernetworking/plugins, pkg/utils and pkg/ip). They learn the addresses from the pod's link:
// a DEL that ends between the link and the rules, because it was killed or host-local failed, cannot be
// repeated. Its successor finds no link, succeeds, and leaves the rules, up to the day when another
// pod has the address.

const chainLength = 28 // the longest name that iptables takes, without the final zero

func masqueradeChain(network, id string) string {
	return fmt.Sprintf("CNI-%x", sha512.Sum512([]byte(network+id)))[:chainLength]
}

func masqueradeComment(network, id string) string {
	return fmt.Sprintf("name: %q id: %q", network, id)
}

// sweepMasquerade removes the chain of one pod of ours, and what leads there, after a DEL that was
// repeated. Rules of others have other names. Where nothing is left it runs one command.
func sweepMasquerade(ctx context.Context, list *libcni.NetworkConfigList, id string) error {
	if !masquerades(list) {
		return nil
	}
	chain, comment := masqueradeChain(list.Name, id), masqueradeComment(list.Name, id)
	for _, program := range []string{"iptables", "ip6tables"} {
		if _, err := iptables(ctx, program, "-S", chain); err != nil { // it is not there, or there is no such table
			continue
		}
		rules, err := iptables(ctx, program, "-S", "POSTROUTING")
		if err != nil {
			return err
		}
		for _, source := range sourcesTo(chain, rules) {
			if _, err := iptables(ctx, program, "-D", "POSTROUTING", "-s", source, "-m", "comment", "--comment", comment, "-j", chain); err != nil {
				return err
			}
		}
		for _, what := range []string{"-F", "-X"} {
			if _, err := iptables(ctx, program, what, chain); err != nil {
				return err
			}
		}
	}
	return nil
}

// masquerades says whether a plugin of the list was told to.
func masquerades(list *libcni.NetworkConfigList) bool {
	for _, p := range list.Plugins {
		var conf struct {
			IPMasq bool `json:"ipMasq"`
		}
		if json.Unmarshal(p.Bytes, &conf) == nil && conf.IPMasq {
			return true
		}
	}
	return false
}

// sourcesTo are the addresses of the rules that lead to a chain, as iptables -S prints them.
func sourcesTo(chain, rules string) []string {
	var sources []string
	for rule := range strings.Lines(rules) {
		words := strings.Fields(rule)
		if len(words) > 4 && words[2] == "-s" && strings.HasSuffix(strings.TrimSpace(rule), " -j "+chain) {
			sources = append(sources, words[3])
		}
	}
	return sources
}

// iptables runs one command on the nat table, as the plugins do.
func iptables(ctx context.Context, program string, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, program, append([]string{"-w", "5", "-t", "nat"}, args...)...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s: %w", program, strings.Join(args, " "), err, strings.TrimSpace(string(out)), errdefs.ErrUnavailable)
	}
	return string(out), nil
}
