package bridge

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
)

// Accepting a packet in one table does not keep another from dropping it. dockerd sets the policy of
// iptables' FORWARD chain to drop, and so do many administrators; pods would reach nothing. So our
// packets are accepted there too: in DOCKER-USER where dockerd has one, because dockerd leaves that
// alone, else at the head of the chain that drops.

// dockerUser is the chain that dockerd keeps for administrators' rules.
const dockerUser = "DOCKER-USER"

// checkKind is a kind of table that others may have.
type checkKind string

const (
	checkNFT    checkKind = "nftables"
	checkLegacy checkKind = "legacy iptables"
)

// every says how often the tables of others are looked at: they may be large, or need a process.
func (k checkKind) every() time.Duration {
	if k == checkLegacy {
		return time.Minute
	}
	return 5 * time.Second
}

// acceptElsewhere looks for chains that drop what is forwarded and lets our packets pass. A table
// that cannot be read or changed is logged: whether it matters to pods is not known. Callers hold
// s.mu.
func (s *segment) acceptElsewhere(ctx context.Context) {
	for kind, accept := range map[checkKind]func(context.Context) error{checkNFT: s.acceptNFT, checkLegacy: s.acceptLegacy} {
		if time.Since(s.checked[kind]) < kind.every() {
			continue
		}
		s.checked[kind] = time.Now()
		if err := accept(ctx); err != nil {
			s.warnOnce("another table may drop pods' packets", err)
		}
	}
}

// warnOnce logs an error that would come again and again. Callers hold s.mu.
func (s *segment) warnOnce(text string, err error) {
	if _, told := s.told[err.Error()]; told {
		return
	}
	s.told[err.Error()] = struct{}{}
	s.log.Warn(text, "error", err)
}

func (s *segment) acceptNFT(context.Context) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	dropping, err := droppingChains(c)
	if err != nil {
		return err
	}
	for _, chain := range dropping {
		if err := s.acceptIn(c, chain); err != nil {
			return fmt.Errorf("accept pods' packets in %s: %w", chainName(chain), err)
		}
	}
	return nil
}

// droppingChains returns the chains that see forwarded packets and drop those no rule accepts.
func droppingChains(c *nftables.Conn) ([]*nftables.Chain, error) {
	chains, err := c.ListChains()
	if err != nil {
		return nil, fmt.Errorf("nftables chains: %w", err)
	}
	return slices.DeleteFunc(chains, func(ch *nftables.Chain) bool {
		return ch.Hooknum == nil || *ch.Hooknum != *nftables.ChainHookForward ||
			ch.Policy == nil || *ch.Policy != nftables.ChainPolicyDrop || !seesIP(ch.Table.Family)
	}), nil
}

func seesIP(f nftables.TableFamily) bool {
	return f == nftables.TableFamilyIPv4 || f == nftables.TableFamilyIPv6 || f == nftables.TableFamilyINet
}

func chainName(ch *nftables.Chain) string {
	names := map[nftables.TableFamily]string{
		nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyINet: "inet",
	}
	return names[ch.Table.Family] + " " + ch.Table.Name + " " + ch.Name
}

// acceptIn puts our rules into the chain, or into DOCKER-USER if the chain goes there, unless they
// are there.
func (s *segment) acceptIn(c *nftables.Conn, chain *nftables.Chain) error {
	rules, err := c.GetRules(chain.Table, chain)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(rules, jumpsTo(dockerUser)) {
		chain = &nftables.Chain{Name: dockerUser, Table: chain.Table}
		if rules, err = c.GetRules(chain.Table, chain); err != nil {
			return err
		}
	}
	if slices.ContainsFunc(rules, s.isOurs) {
		return nil
	}
	for _, key := range []expr.MetaKey{expr.MetaKeyOIFNAME, expr.MetaKeyIIFNAME} {
		// As iptables itself writes `-i bridge -j ACCEPT`, so that it can go on listing the chain.
		exprs := append(iface(key, expr.CmpOpEq, s.name), &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictAccept})
		c.InsertRule(&nftables.Rule{Table: chain.Table, Chain: chain, Exprs: exprs, UserData: s.mark()})
	}
	if err := c.Flush(); err != nil {
		return err
	}
	s.log.Info("another table drops what is forwarded: accepting pods' packets there", "chain", chainName(chain))
	return nil
}

// mark is the comment by which our rules in the tables of others are known.
func (s *segment) mark() []byte {
	return userdata.AppendString(nil, userdata.TypeComment, s.comment())
}

func (s *segment) comment() string { return "gantry " + s.name }

func (s *segment) isOurs(r *nftables.Rule) bool {
	text, ok := userdata.GetString(r.UserData, userdata.TypeComment)
	return ok && text == s.comment()
}

func jumpsTo(chain string) func(*nftables.Rule) bool {
	return func(r *nftables.Rule) bool {
		return slices.ContainsFunc(r.Exprs, func(e expr.Any) bool {
			v, ok := e.(*expr.Verdict)
			return ok && v.Chain == chain
		})
	}
}

// withdraw removes our rules from the tables of others.
func (s *segment) withdraw(ctx context.Context) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	chains, err := c.ListChains()
	if err != nil {
		return fmt.Errorf("nftables chains: %w", err)
	}
	for _, chain := range chains {
		if !seesIP(chain.Table.Family) || chain.Name != dockerUser &&
			(chain.Hooknum == nil || *chain.Hooknum != *nftables.ChainHookForward) {
			continue
		}
		rules, err := c.GetRules(chain.Table, chain)
		if err != nil {
			return fmt.Errorf("rules of %s: %w", chainName(chain), err)
		}
		for _, r := range rules {
			if s.isOurs(r) {
				if err := c.DelRule(r); err != nil {
					return fmt.Errorf("remove rule from %s: %w", chainName(chain), err)
				}
			}
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("remove rules from other tables: %w", err)
	}
	clear(s.checked)
	return s.withdrawLegacy(ctx)
}
