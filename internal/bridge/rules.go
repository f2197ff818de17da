package bridge

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Registers. Concatenations lie in 32-bit registers one after another, from the first on.
const (
	reg1     = unix.NFT_REG_1
	reg32_00 = unix.NFT_REG32_00
)

// ipsDstNAT is IPS_DST_NAT of linux/netfilter/nf_conntrack_common.h: the destination was translated.
const ipsDstNAT = 1 << 5

// family is what differs between IPv4 and IPv6 in our rules.
type family struct {
	proto     byte // NFPROTO_…
	size      int  // bytes of an address
	src, dst  uint32
	loopback  netip.Prefix
	multicast netip.Prefix
	addrType  nftables.SetDatatype
	exact     string // map from protocol, host address and port
	anyAddr   string // map from protocol and port
}

func families() [2]family {
	return [2]family{
		{
			proto: unix.NFPROTO_IPV4, size: 4, src: 12, dst: 16,
			loopback: netip.MustParsePrefix("127.0.0.0/8"), multicast: netip.MustParsePrefix("224.0.0.0/4"),
			addrType: nftables.TypeIPAddr, exact: "ports4", anyAddr: "ports4_any",
		},
		{
			proto: unix.NFPROTO_IPV6, size: 16, src: 8, dst: 24,
			loopback: netip.MustParsePrefix("::1/128"), multicast: netip.MustParsePrefix("ff00::/8"),
			addrType: nftables.TypeIP6Addr, exact: "ports6", anyAddr: "ports6_any",
		},
	}
}

func (f family) has(a netip.Addr) bool { return a.BitLen()/8 == f.size }

func (s *segment) table() *nftables.Table {
	return &nftables.Table{Name: s.name, Family: nftables.TableFamilyINet}
}

// maps returns the family's maps of host ports, as the kernel knows them by name.
func (s *segment) maps(f family) (exact, anyAddr *nftables.Set) {
	target := nftables.MustConcatSetType(f.addrType, nftables.TypeInetService)
	exact = &nftables.Set{
		Table: s.table(), Name: f.exact, ID: uint32(f.proto)<<1 | 1, IsMap: true, Concatenation: true, DataType: target,
		KeyType: nftables.MustConcatSetType(nftables.TypeInetProto, f.addrType, nftables.TypeInetService),
	}
	anyAddr = &nftables.Set{
		Table: s.table(), Name: f.anyAddr, ID: uint32(f.proto) << 1, IsMap: true, Concatenation: true, DataType: target,
		KeyType: nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService),
	}
	return exact, anyAddr
}

func (s *segment) tableExists() (bool, error) { return exists(s.table()) }

func exists(t *nftables.Table) (bool, error) {
	c, err := nftables.New()
	if err != nil {
		return false, fmt.Errorf("nftables: %w", err)
	}
	_, err = c.ListTableOfFamily(t.Name, t.Family)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("nftables table %s: %w", t.Name, err)
	}
	return true, nil
}

// buildTable makes our table, with the host ports of every record, in place of one that is there,
// in one transaction. Callers hold s.mu.
func (s *segment) buildTable() error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	t := c.AddTable(s.table()) // so that there is one to delete
	c.DelTable(t)
	c.AddTable(t)
	if err := s.addMaps(c); err != nil {
		return err
	}
	s.addPortChains(c)
	s.addLocalnetChain(c)
	s.addMasquerade(c)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("nftables table %s: %w", s.name, err)
	}
	if err := s.keepReports(); err != nil {
		s.warnOnce("pods of this node hear which IPv6 addresses the others have: each costs all a little", err)
	}
	return nil
}

func (s *segment) addMaps(c *nftables.Conn) error {
	for _, f := range families() {
		exact, anyAddr := s.maps(f)
		for _, m := range []*nftables.Set{exact, anyAddr} {
			if err := c.AddSet(m, nil); err != nil {
				return fmt.Errorf("nftables map %s: %w", m.Name, err)
			}
		}
	}
	for _, rec := range s.records {
		if err := s.addElements(c, rec.Ports); err != nil {
			return err
		}
	}
	return nil
}

// addPortChains translates what is addressed to the node itself, come from outside or from the node.
func (s *segment) addPortChains(c *nftables.Conn) {
	ports := c.AddChain(&nftables.Chain{Name: "hostports", Table: s.table()})
	for _, f := range families() {
		if f.size == 16 {
			// Such packets cannot leave the loopback: refused at once is better than lost.
			s.rule(c, ports, isFamily(f), addrIn(f.dst, f.loopback, expr.CmpOpEq), verdict(expr.VerdictReturn, ""))
		}
		exact, anyAddr := s.maps(f)
		s.rule(c, ports, isFamily(f), l4proto(), load(f.dst, f.size, reg32_00+1), dport(reg32_00+1+uint32(f.size/4)), dnat(f, exact))
		s.rule(c, ports, isFamily(f), l4proto(), dport(reg32_00+1), dnat(f, anyAddr))
	}
	for _, chain := range []*nftables.Chain{
		{Name: "prerouting", Hooknum: nftables.ChainHookPrerouting},
		{Name: "output", Hooknum: nftables.ChainHookOutput},
	} {
		chain.Table, chain.Type, chain.Priority = s.table(), nftables.ChainTypeNAT, nftables.ChainPriorityNATDest
		c.AddChain(chain)
		s.rule(c, chain, daddrIsLocal(), verdict(expr.VerdictJump, ports.Name))
	}
}

// addLocalnetChain drops loopback addresses that come over a wire, before anything is translated.
func (s *segment) addLocalnetChain(c *nftables.Conn) {
	chain := c.AddChain(&nftables.Chain{
		Name: "localnet", Table: s.table(), Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw,
	})
	f := families()[0]
	for _, offset := range []uint32{f.dst, f.src} {
		s.rule(c, chain, isFamily(f), iface(expr.MetaKeyIIFNAME, expr.CmpOpNeq, "lo"),
			addrIn(offset, f.loopback, expr.CmpOpEq), verdict(expr.VerdictDrop, ""))
	}
}

// addMasquerade hides pods from elsewhere behind the node's address, and behind the bridge's whoever
// reaches a pod by a host port from where the reply would take another way: pods, and 127.0.0.1.
func (s *segment) addMasquerade(c *nftables.Conn) {
	chain := c.AddChain(&nftables.Chain{
		Name: "postrouting", Table: s.table(), Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	masquerade := []expr.Any{&expr.Masq{}}
	toBridge := iface(expr.MetaKeyOIFNAME, expr.CmpOpEq, s.name)
	elsewhere := iface(expr.MetaKeyOIFNAME, expr.CmpOpNeq, s.name)
	for _, f := range families() {
		if f.size == 4 {
			s.rule(c, chain, isFamily(f), toBridge, addrIn(f.src, f.loopback, expr.CmpOpEq), masquerade)
		}
		for _, p := range s.base.subnets {
			if !f.has(p.Addr()) {
				continue
			}
			s.rule(c, chain, isFamily(f), toBridge, addrIn(f.src, p, expr.CmpOpEq), translated(), masquerade)
			s.rule(c, chain, isFamily(f), elsewhere, addrIn(f.src, p, expr.CmpOpEq), addrIn(f.dst, f.multicast, expr.CmpOpNeq), masquerade)
		}
	}
}

func (s *segment) rule(c *nftables.Conn, chain *nftables.Chain, parts ...[]expr.Any) {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	c.AddRule(&nftables.Rule{Table: chain.Table, Chain: chain, Exprs: all})
}

func isFamily(f family) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: []byte{f.proto}},
	}
}

func iface(key expr.MetaKey, op expr.CmpOp, name string) []expr.Any {
	data := make([]byte, unix.IFNAMSIZ)
	copy(data, name)
	return []expr.Any{&expr.Meta{Key: key, Register: reg1}, &expr.Cmp{Op: op, Register: reg1, Data: data}}
}

// addrIn compares the address at an offset of the network header with a prefix.
func addrIn(offset uint32, p netip.Prefix, op expr.CmpOp) []expr.Any {
	size := p.Addr().BitLen() / 8
	mask := make([]byte, size)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return append(load(offset, size, reg1),
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: uint32(size), Mask: mask, Xor: make([]byte, size)},
		&expr.Cmp{Op: op, Register: reg1, Data: p.Masked().Addr().AsSlice()})
}

func load(offset uint32, size int, register uint32) []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(size)}}
}

func l4proto() []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg32_00}}
}

// dport is at the same place in TCP, UDP and SCTP headers.
func dport(register uint32) []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}}
}

// dnat looks the key in the first registers up and sends the packet to what it finds.
func dnat(f family, m *nftables.Set) []expr.Any {
	return []expr.Any{
		&expr.Lookup{SourceRegister: reg1, DestRegister: reg1, IsDestRegSet: true, SetName: m.Name, SetID: m.ID},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.proto), RegAddrMin: reg1, RegProtoMin: reg32_00 + uint32(f.size/4)},
	}
}

func daddrIsLocal() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: reg1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
}

// translated matches packets whose destination a host port has changed.
func translated() []expr.Any {
	return []expr.Any{
		&expr.Ct{Register: reg1, Key: expr.CtKeySTATUS},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(ipsDstNAT), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: make([]byte, 4)},
	}
}

func verdict(kind expr.VerdictKind, chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: kind, Chain: chain}}
}
