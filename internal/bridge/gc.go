package bridge

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// gc removes what attachments that are not valid have left: links, leases, host ports. Those that
// this process has begun are spared, because they may be younger than the list. When nothing is left
// the bridge goes too, and our rules everywhere.
func (b *Bridge) gc(ctx context.Context, s *segment, conf *pluginConf) error {
	if conf.Valid == nil {
		return nil // not told what is valid
	}
	var errs []error
	for _, id := range s.stale(*conf.Valid) {
		unlock, err := b.locks.Lock(ctx, id)
		if err != nil {
			return err
		}
		if !s.isLive(id) {
			errs = append(errs, s.remove(id))
		}
		unlock()
	}
	errs = append(errs, s.removeStrays(*conf.Valid))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return s.tearDown(ctx)
}

// stale returns the recorded attachments that are neither valid nor begun by this process.
func (s *segment) stale(valid []types.GCAttachment) []attachmentID {
	s.mu.Lock()
	defer s.mu.Unlock()
	stale := maps.Clone(s.records)
	for id := range s.live {
		delete(stale, id)
	}
	for _, v := range valid {
		delete(stale, attachmentID{Bridge: s.name, Container: v.ContainerID, IfName: v.IfName})
	}
	return slices.Collect(maps.Keys(stale))
}

func (s *segment) isLive(id attachmentID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, live := s.live[id]
	return live
}

// removeStrays removes ports of the bridge that are ours by name and that nobody knows.
func (s *segment) removeStrays(valid []types.GCAttachment) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	known := make(map[string]struct{})
	for id := range s.live {
		known[linkName(id)] = struct{}{}
	}
	for id := range s.records {
		known[linkName(id)] = struct{}{}
	}
	for _, v := range valid {
		known[linkName(attachmentID{Container: v.ContainerID, IfName: v.IfName})] = struct{}{}
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer h.Close()
	bridge, err := h.LinkByName(s.name)
	if isNoLink(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("bridge %s: %w", s.name, err)
	}
	ports, err := portsOf(h, bridge.Attrs().Index)
	if err != nil {
		return err
	}
	for _, link := range ports {
		name := link.Attrs().Name
		if _, ok := known[name]; ok || !strings.HasPrefix(name, linkPrefix) {
			continue
		}
		if err := h.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("remove link %s: %w", name, err)
		}
		s.log.Info("removed a link that nobody knows", "link", name, "container", link.Attrs().Alias)
	}
	return nil
}

// tearDown removes the table, our rules elsewhere, and the bridge if we made it and it has no ports,
// unless there are attachments.
func (s *segment) tearDown(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.records) > 0 || len(s.live) > 0 {
		return nil
	}
	if err := s.withdraw(ctx); err != nil {
		return err
	}
	if err := s.deleteTable(); err != nil {
		return err
	}
	s.base = base{}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer h.Close()
	link, err := h.LinkByName(s.name)
	if isNoLink(err) || err == nil && link.Attrs().Alias != bridgeAlias+s.owner {
		return nil
	}
	if err != nil {
		return fmt.Errorf("bridge %s: %w", s.name, err)
	}
	ports, err := portsOf(h, link.Attrs().Index)
	if err != nil || len(ports) > 0 {
		return err
	}
	if err := h.LinkDel(link); err != nil {
		return fmt.Errorf("remove bridge %s: %w", s.name, err)
	}
	return nil
}

func (s *segment) deleteTable() error {
	for _, t := range []*nftables.Table{s.reportsTable(), s.table()} {
		exists, err := exists(t)
		if err != nil && t.Family == nftables.TableFamilyBridge { // a kernel without that family
			continue
		}
		if err != nil {
			return err
		}
		if !exists {
			continue
		}
		c, err := nftables.New()
		if err != nil {
			return fmt.Errorf("nftables: %w", err)
		}
		c.DelTable(t)
		if err := c.Flush(); err != nil {
			return fmt.Errorf("remove nftables table %s: %w", t.Name, err)
		}
	}
	return nil
}
