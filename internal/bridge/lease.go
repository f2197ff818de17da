package bridge

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// leases are files named by address, which hold boot id, container id and interface, a line each.
// They are made with O_EXCL, so that even two processes never give one address twice. A lease of an
// earlier boot is worth nothing.
type leases struct {
	dir  string
	boot string
}

// cursorFile holds the offset given last: the next pod gets a later one, so that an address is not
// used again while somebody may still mean its former owner.
const cursorFile = "last"

// take leases the same offset in every subnet and returns the addresses in the subnets' order.
func (l leases) take(id attachmentID, subnets []netip.Prefix) ([]netip.Addr, error) {
	const first = 2 // 0 is the subnet, 1 the gateway
	last := uint64(math.MaxUint64)
	for _, p := range subnets {
		last = min(last, lastOffset(p))
	}
	at := l.cursor()
	for range last - first + 1 {
		if at++; at < first || at > last {
			at = first
		}
		addrs, err := l.takeAt(id, subnets, at)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		// Losing the cursor costs nothing but the order.
		_ = os.WriteFile(filepath.Join(l.dir, cursorFile), []byte(strconv.FormatUint(at, 10)), 0o600)
		return addrs, nil
	}
	return nil, fmt.Errorf("no address is free in %v: %w", subnets, errdefs.ErrResourceExhausted)
}

func (l leases) takeAt(id attachmentID, subnets []netip.Prefix, offset uint64) ([]netip.Addr, error) {
	var addrs []netip.Addr
	for _, p := range subnets {
		addr := plus(p.Addr(), offset)
		if err := l.create(addr, id); err != nil {
			return nil, errors.Join(err, l.release(id, addrs))
		}
		addrs = append(addrs, addr)
	}
	return addrs, nil
}

func (l leases) create(addr netip.Addr, id attachmentID) error {
	f, err := os.OpenFile(l.path(addr), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("lease: %w", err)
	}
	_, err = fmt.Fprintf(f, "%s\n%s\n%s\n", l.boot, id.Container, id.IfName)
	if err = errors.Join(err, f.Close()); err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("lease: %w", err)
	}
	return nil
}

// release gives back those of the addresses that are leased to id.
func (l leases) release(id attachmentID, addrs []netip.Addr) error {
	var errs []error
	for _, a := range addrs {
		if _, container, ifName := l.read(a); container == id.Container && ifName == id.IfName {
			if err := os.Remove(l.path(a)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// load removes the leases of earlier boots and those without a holder, and returns the others.
func (l leases) load() (map[netip.Addr]attachmentID, error) {
	if err := os.MkdirAll(l.dir, 0o700); err != nil {
		return nil, fmt.Errorf("leases: %w", err)
	}
	entries, err := os.ReadDir(l.dir)
	if err != nil {
		return nil, fmt.Errorf("leases: %w", err)
	}
	held := make(map[netip.Addr]attachmentID)
	for _, e := range entries {
		addr, err := netip.ParseAddr(e.Name())
		if err != nil {
			continue
		}
		boot, container, ifName := l.read(addr)
		if boot != l.boot || ifName == "" {
			if err := os.Remove(l.path(addr)); err != nil {
				return nil, fmt.Errorf("lease of an earlier boot: %w", err)
			}
			continue
		}
		held[addr] = attachmentID{Container: container, IfName: ifName}
	}
	return held, nil
}

func (l leases) read(addr netip.Addr) (boot, container, ifName string) {
	data, _ := os.ReadFile(l.path(addr))
	if lines := strings.Split(string(data), "\n"); len(lines) == 4 {
		return lines[0], lines[1], lines[2]
	}
	return "", "", ""
}

func (l leases) cursor() uint64 {
	data, _ := os.ReadFile(filepath.Join(l.dir, cursorFile))
	at, _ := strconv.ParseUint(string(data), 10, 64)
	return at
}

func (l leases) path(addr netip.Addr) string { return filepath.Join(l.dir, addr.String()) }

// lastOffset is that of the last address a pod may have: IPv4's last is the broadcast address.
func lastOffset(p netip.Prefix) uint64 {
	bits := p.Addr().BitLen() - p.Bits()
	if bits > 62 {
		bits = 62 // more than can be counted through
	}
	last := uint64(1)<<bits - 1
	if p.Addr().Is4() {
		last--
	}
	return last
}

// plus adds an offset to an address.
func plus(a netip.Addr, offset uint64) netip.Addr {
	sum := new(big.Int).SetBytes(a.AsSlice())
	sum.Add(sum, new(big.Int).SetUint64(offset))
	raw := make([]byte, a.BitLen()/8)
	out, _ := netip.AddrFromSlice(sum.FillBytes(raw))
	return out
}
