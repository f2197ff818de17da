package bridge

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// A pod reports by multicast which IPv6 groups it listens to (RFC 3810), and so first of all, several times, those
// that belong to its own addresses. All other pods of the bridge would receive that: at 500 pods milliseconds of
// the node's processor time for each that begins. Nobody wants it: such groups are of the link's scope, so no
// router forwards them (RFC 4291), and the bridge, which may, reads a report before our rules see it. So reports
// of nothing else are not forwarded from one pod to another; to the node and to other ports they go.

// The header of a report (RFC 3810, section 5.2), and its records, which are so long when they name no source.
const (
	mldReport    = 143 // the ICMPv6 type
	mldCount     = 6   // offset of the number of records
	mldRecords   = 8   // offset of the first
	recordRest   = 1   // offset, in a record, of what says how much follows the group
	recordGroup  = 4
	recordLength = 20
)

// mostRecords is how many records there are of a pod's own addresses: link-local and of one subnet.
const mostRecords = 2

// ownGroups are those of addresses (RFC 4291, section 2.7.1).
func ownGroups() netip.Prefix { return netip.MustParsePrefix("ff02::1:ff00:0/104") }

func (s *segment) reportsTable() *nftables.Table {
	return &nftables.Table{Name: s.name, Family: nftables.TableFamilyBridge}
}

// keepReports makes the table for it, in place of one that is there. A kernel may have no such tables.
func (s *segment) keepReports() error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	t := c.AddTable(s.reportsTable())
	c.DelTable(t)
	c.AddTable(t)
	reports := c.AddChain(&nftables.Chain{Name: "reports", Table: t})
	for records := mostRecords; records > 0; records-- { // most have most
		s.rule(c, reports, isOf(records), verdict(expr.VerdictDrop, ""))
	}
	chain := c.AddChain(&nftables.Chain{
		Name: "forward", Table: t, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityRef(-300), // before iptables see it
	})
	s.rule(c, chain, isReport(), betweenPods(), verdict(expr.VerdictJump, reports.Name))
	if err := c.Flush(); err != nil {
		return fmt.Errorf("nftables table %s of bridges: %w", s.name, err)
	}
	return nil
}

func betweenPods() []expr.Any {
	var all []expr.Any
	for _, key := range []expr.MetaKey{expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME} {
		all = append(all, &expr.Meta{Key: key, Register: reg1}, &expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: []byte(linkPrefix)})
	}
	return all
}

// isReport is asked first: most packets are something else.
func isReport() []expr.Any {
	return slices.Concat(
		[]expr.Any{
			&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: reg1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: binaryutil.BigEndian.PutUint16(unix.ETH_P_IPV6)},
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: []byte{unix.IPPROTO_ICMPV6}},
		},
		holds(0, []byte{mldReport}))
}

// isOf matches a report of so many records, all of own groups and without sources.
func isOf(records int) []expr.Any {
	groups := ownGroups()
	own := groups.Addr().AsSlice()[:groups.Bits()/8]
	all := holds(mldCount, binaryutil.BigEndian.PutUint16(uint16(records)))
	for i := range records {
		at := uint32(mldRecords + i*recordLength)
		all = slices.Concat(all, holds(at+recordGroup, own), holds(at+recordRest, []byte{0, 0, 0}))
	}
	return all
}

// holds matches what is at an offset behind the IP headers.
func holds(offset uint32, want []byte) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: uint32(len(want))},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: want},
	}
}
