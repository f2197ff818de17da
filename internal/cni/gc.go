package cni

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"

	"gantry/internal/pod"
)

// Cached returns the pods that plugins may know something of, whatever became of them, sorted.
func (n *Network) Cached(context.Context) ([]pod.Key, error) {
	ids, err := os.ReadDir(filepath.Join(n.opts.CacheDir, idsDir))
	if err != nil {
		return nil, fmt.Errorf("cni cache: %w", err)
	}
	keys := n.cache.keys()
	for _, id := range ids {
		keys = append(keys, pod.Key(id.Name()))
	}
	slices.Sort(keys)
	return slices.Compact(keys), nil
}

// GC disconnects every pod of ours that is neither in keep nor attached by this process, tells the
// plugins which attachments are valid (CNI 1.1; a list shared with another runtime says disableGC),
// and removes what host-local still has leased to the pods that were collected, or to nobody. It goes on after an
// error and returns them all.
func (n *Network) GC(ctx context.Context, keep []*Attachment) error {
	valid := n.liveKeys()
	for _, a := range keep {
		valid[a.Key] = struct{}{}
	}
	known, err := n.Cached(ctx)
	if err != nil {
		return err
	}
	stale := make(map[string]struct{})
	lists := make(map[string]*libcni.NetworkConfigList)
	conf, reason := n.current()
	if conf != nil {
		lists[string(conf.list.Bytes)] = conf.list
	}
	var errs []error
	for _, key := range known {
		if _, ok := valid[key]; ok {
			continue
		}
		stale[string(key)] = struct{}{}
		n.collectLists(key, lists)
		if err := n.Detach(ctx, &Attachment{Key: key, NetNS: n.cachedNetNS(key)}); err != nil {
			errs = append(errs, fmt.Errorf("collect network of %s: %w", key, err))
		}
	}
	if reason == nil {
		errs = append(errs, n.pluginGC(ctx, conf.list, valid))
	}
	for _, list := range lists {
		errs = append(errs, freeHostLocal(list, stale), sweepHostLocal(ctx, list))
	}
	return errors.Join(errs...)
}

func (n *Network) pluginGC(ctx context.Context, list *libcni.NetworkConfigList, valid map[pod.Key]struct{}) error {
	args := &libcni.GCArgs{ValidAttachments: make([]types.GCAttachment, 0, len(valid))}
	for key := range valid {
		args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: string(key), IfName: interfaceName})
	}
	ctx, cancel := deadline(ctx, n.opts.DetachTimeout)
	defer cancel()
	return n.cni.GCNetworkList(ctx, list, args)
}

// collectLists adds the configurations that a pod was attached with.
func (n *Network) collectLists(key pod.Key, lists map[string]*libcni.NetworkConfigList) {
	cached, _ := n.cni.GetCachedAttachments(string(key))
	for _, c := range cached {
		if list, err := parseList(c.Config); err == nil {
			lists[string(list.Bytes)] = list
		}
	}
}

func (n *Network) cachedNetNS(key pod.Key) string {
	cached, _ := n.cni.GetCachedAttachments(string(key))
	for _, c := range cached {
		return c.NetNS
	}
	return ""
}
