package bridge

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"github.com/google/nftables"

	"gantry/internal/sysctl"
)

// Check looks for what on this node may keep pods of the builtin network from being reached, or from
// reaching others, and says for each how to mend it. No finding is an empty result; findings that
// gantry mends by itself when it connects a pod say so.
func Check(ctx context.Context) ([]string, error) {
	tree, err := sysctl.Open()
	if err != nil {
		return nil, err
	}
	defer tree.Close()
	var found []string
	for _, name := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
		if value, missing := tree.Read(name); missing == nil && value == "0" {
			dotted := strings.ReplaceAll(name, "/", ".")
			found = append(found, dotted+" is 0: nothing is forwarded; gantry sets it to 1 with the first pod, `sysctl -w "+dotted+"=1` does so now")
		}
	}
	dropping, err := checkTables(ctx)
	if err != nil {
		return found, err
	}
	found = append(found, dropping...)
	if value, missing := tree.Read("net/bridge/bridge-nf-call-iptables"); missing == nil && value == "1" && len(dropping) > 0 {
		found = append(found, "net.bridge.bridge-nf-call-iptables is 1: the tables that drop forwarded packets also see those between pods of this node")
	}
	return found, nil
}

func checkTables(ctx context.Context) ([]string, error) {
	const mends = "; gantry accepts its pods' packets there when it connects one"
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	chains, err := droppingChains(c)
	if err != nil {
		return nil, err
	}
	var found []string
	for _, chain := range chains {
		found = append(found, "nftables chain "+chainName(chain)+" drops what is forwarded"+mends)
	}
	for _, command := range legacyCommands() {
		policy, err := iptables(ctx, command, "-S", "FORWARD")
		switch {
		case errors.Is(err, exec.ErrNotFound):
			found = append(found, "legacy iptables has rules, but "+command+" is not installed: install iptables")
		case err != nil:
			return found, err
		case strings.HasPrefix(policy, "-P FORWARD DROP"):
			found = append(found, command+": policy FORWARD DROP"+mends)
		}
	}
	return found, nil
}
