package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	core "k8s.io/api/core/v1"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// dns leaves the node's resolv.conf to the server unless the manifest adds to it or replaces it.
// There is no cluster here: ClusterFirst means the node's, as it does without a cluster DNS.
func (b *builder) dns() error {
	more := b.in.Spec.DNSConfig
	policy := b.in.Spec.DNSPolicy
	switch policy {
	case "", core.DNSClusterFirst, core.DNSClusterFirstWithHostNet, core.DNSDefault:
		if more == nil {
			return nil
		}
		b.out.Sandbox.DnsConfig = parseResolvConf(b.opts.ResolvConf)
	case core.DNSNone:
		if more == nil || len(more.Nameservers) == 0 {
			return errors.New("dnsPolicy None needs nameservers in dnsConfig")
		}
		b.out.Sandbox.DnsConfig = &v1.DNSConfig{}
	default:
		return fmt.Errorf("dnsPolicy %q is not known", policy)
	}
	to := b.out.Sandbox.DnsConfig
	to.Servers = union(to.Servers, more.Nameservers)
	to.Searches = union(to.Searches, more.Searches)
	for _, o := range more.Options {
		text := o.Name
		if o.Value != nil {
			text += ":" + *o.Value
		}
		to.Options = slices.DeleteFunc(to.Options, func(have string) bool {
			name, _, _ := strings.Cut(have, ":")
			return name == o.Name
		})
		to.Options = append(to.Options, text)
	}
	return nil
}

// parseResolvConf reads resolv.conf(5); the last search or domain line wins.
func parseResolvConf(data []byte) *v1.DNSConfig {
	out := &v1.DNSConfig{}
	for line := range bytes.Lines(data) {
		words := strings.Fields(string(line))
		if len(words) < 2 {
			continue
		}
		switch words[0] {
		case "nameserver":
			out.Servers = append(out.Servers, words[1])
		case "search", "domain":
			out.Searches = words[1:]
		case "options":
			out.Options = append(out.Options, words[1:]...)
		}
	}
	return out
}

func union(a, b []string) []string {
	out := slices.Clone(a)
	for _, s := range b {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}
