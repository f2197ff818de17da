package bridge

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// Legacy iptables is a second packet filter, invisible to nftables, and only its own command can
// change it. Commands run only where its tables are loaded.

const (
	iptablesWait    = "5" // seconds for iptables' lock
	iptablesTimeout = 8 * time.Second
)

// legacyCommands returns the commands for the IP families whose filter table is loaded.
func legacyCommands() []string {
	var commands []string
	for _, family := range [][2]string{{"ip_tables_names", "iptables-legacy"}, {"ip6_tables_names", "ip6tables-legacy"}} {
		names, err := os.ReadFile("/proc/thread-self/net/" + family[0])
		if err == nil && slices.Contains(strings.Fields(string(names)), "filter") {
			commands = append(commands, family[1])
		}
	}
	return commands
}

// acceptLegacy does for legacy iptables what acceptNFT does for nftables.
func (s *segment) acceptLegacy(ctx context.Context) error {
	for _, command := range legacyCommands() {
		listing, err := iptables(ctx, command, "-S")
		if errors.Is(err, exec.ErrNotFound) {
			s.warnOnce("legacy iptables may drop pods' packets, and its command is not installed", err)
			continue
		}
		if err != nil {
			return err
		}
		chain, needed := legacyChain(listing, s.name)
		if !needed {
			continue
		}
		for _, direction := range []string{"-o", "-i"} {
			if _, err := iptables(ctx, command, append([]string{"-I", chain}, s.legacyRule(direction)...)...); err != nil {
				return err
			}
		}
		s.log.Info("another table drops what is forwarded: accepting pods' packets there", "command", command, "chain", chain)
	}
	return nil
}

// legacyChain says from a listing (iptables -S) in which chain our rules are needed, if they are.
func legacyChain(listing, bridge string) (chain string, needed bool) {
	lines := strings.Split(listing, "\n")
	if !slices.Contains(lines, "-P FORWARD DROP") {
		return "", false
	}
	chain = "FORWARD"
	if slices.Contains(lines, "-A FORWARD -j "+dockerUser) {
		chain = dockerUser
	}
	return chain, !slices.ContainsFunc(lines, func(l string) bool {
		return strings.HasPrefix(l, "-A "+chain+" -i "+bridge+" ") && strings.HasSuffix(l, "-j ACCEPT")
	})
}

func (s *segment) legacyRule(direction string) []string {
	return []string{direction, s.name, "-m", "comment", "--comment", s.comment(), "-j", "ACCEPT"}
}

func (s *segment) withdrawLegacy(ctx context.Context) error {
	for _, command := range legacyCommands() {
		listing, err := iptables(ctx, command, "-S")
		if errors.Is(err, exec.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		for _, chain := range []string{"FORWARD", dockerUser} {
			for _, direction := range []string{"-i", "-o"} {
				if !strings.Contains(listing, "-A "+chain+" "+direction+" "+s.name+" -m comment") {
					continue
				}
				if _, err := iptables(ctx, command, append([]string{"-D", chain}, s.legacyRule(direction)...)...); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func iptables(ctx context.Context, command string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, iptablesTimeout)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, command, append([]string{"-w", iptablesWait}, args...)...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", command, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}
