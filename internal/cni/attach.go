package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containernetworking/cni/libcni"

	"gantry/internal/pod"
)

// interfaceName is what a pod's interface is called; the kubelet and users expect it.
const interfaceName = "eth0"

// idsDir holds a file for each container id that plugins may know something of. It is made before the
// first plugin runs and removed after the last DEL succeeded, so that even after a power cut, which may
// take the cache with it, an address that was given away is found and given back. It is empty until the
// first DEL, which writes detaching into it: what finds that is a repeat.
const (
	idsDir    = "ids"
	detaching = "detaching"
)

// Attach connects a pod and returns its addresses. After an error the pod is not connected: DEL has
// been called and its failure is part of the error; Detach may be tried again. Attaching a pod that
// is connected connects it anew.
func (n *Network) Attach(ctx context.Context, a *Attachment) (*pod.Network, error) {
	unlock, err := n.locks.Lock(ctx, a.Key)
	if err != nil {
		return nil, fmt.Errorf("attach network: %w", err)
	}
	defer unlock()
	conf, err := n.current()
	if err != nil {
		return nil, err
	}
	// Now, because a DEL for it could not be called either.
	if err = n.findPlugins(conf); err != nil {
		return nil, err
	}
	rt, err := runtimeConf(a)
	if err != nil {
		return nil, err
	}
	n.setLive(a.Key, true)
	if n.known(a.Key) {
		if err = n.detach(ctx, a); err != nil {
			return nil, fmt.Errorf("detach before attaching anew: %w", err)
		}
	}
	if err = os.WriteFile(n.idFile(a.Key), nil, 0o600); err != nil {
		n.setLive(a.Key, false)
		return nil, fmt.Errorf("attach network: %w", err)
	}
	n.cache.add(a.Key, entry{conf.list.Name, rt.IfName})
	network, err := n.add(ctx, conf.list, rt)
	if err == nil {
		return network, nil
	}
	err = fmt.Errorf("network %q: %w", conf.list.Name, err)
	if _, failed := n.beginDetach(a.Key); failed != nil {
		return nil, errors.Join(err, failed)
	}
	if undo := n.undo(ctx, conf.list, rt); undo != nil {
		return nil, errors.Join(err, fmt.Errorf("undo: %w", undo))
	}
	n.forget(a.Key)
	return nil, err
}

func (n *Network) add(ctx context.Context, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) (*pod.Network, error) {
	ctx, cancel := deadline(ctx, n.opts.AttachTimeout)
	defer cancel()
	res, err := n.cni.AddNetworkList(ctx, list, rt)
	if err != nil {
		return nil, err
	}
	return convert(res)
}

// undo calls DEL after a failed ADD, also when the caller has given up, and takes away what a killed
// host-local leaves.
func (n *Network) undo(ctx context.Context, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) error {
	ctx, cancel := deadline(context.WithoutCancel(ctx), n.opts.DetachTimeout)
	defer cancel()
	if err := n.cni.DelNetworkList(ctx, list, rt); err != nil {
		return err
	}
	return sweepHostLocal(ctx, list)
}

// Detach disconnects a pod with the configuration that it was attached with. A pod that was never
// attached, or whose network namespace is gone, is no error. It may be repeated.
func (n *Network) Detach(ctx context.Context, a *Attachment) error {
	unlock, err := n.locks.Lock(ctx, a.Key)
	if err != nil {
		return fmt.Errorf("detach network: %w", err)
	}
	defer unlock()
	if a.Network == nil && !n.known(a.Key) {
		n.setLive(a.Key, false)
		return nil
	}
	return n.detach(ctx, a)
}

// detach runs DEL for every network that the cache says the pod is in, else for the current one.
func (n *Network) detach(ctx context.Context, a *Attachment) error {
	ctx, cancel := deadline(ctx, n.opts.DetachTimeout)
	defer cancel()
	rt, err := runtimeConf(a)
	if err != nil {
		return err
	}
	if _, gone := os.Stat(a.NetNS); gone != nil {
		rt.NetNS = ""
	}
	cached := n.cache.attachments(a.Key, rt)
	repeated, err := n.beginDetach(a.Key)
	if err != nil {
		return err
	}
	if len(cached) == 0 {
		return n.detachUncached(ctx, a, rt, repeated)
	}
	for _, c := range cached {
		list, err := parseList(c.config)
		if err != nil {
			return fmt.Errorf("configuration that network %q was attached with: %w", c.network, err)
		}
		if err := n.del(ctx, list, c.rt, repeated); err != nil {
			return err
		}
	}
	n.forget(a.Key)
	return nil
}

// detachUncached is for a pod whose ADD never came to its end, or whose cache a power cut took.
func (n *Network) detachUncached(ctx context.Context, a *Attachment, rt *libcni.RuntimeConf, repeated bool) error {
	conf, err := n.current()
	if err != nil {
		return fmt.Errorf("pod was attached with a configuration that is gone: %w", err)
	}
	if err := n.restoreCache(conf.list, rt, a.Network); err != nil {
		return err
	}
	if err := n.del(ctx, conf.list, rt, repeated); err != nil {
		return err
	}
	n.forget(a.Key)
	return nil
}

// del runs DEL, and takes away what a repeated one may leave.
func (n *Network) del(ctx context.Context, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf, repeated bool) error {
	err := n.cni.DelNetworkList(ctx, list, rt)
	if err == nil && repeated && n.opts.Config == nil {
		err = errors.Join(sweepMasquerade(ctx, list, rt.ContainerID), sweepHostLocal(ctx, list))
	}
	if err != nil {
		return fmt.Errorf("network %q: %w", list.Name, err)
	}
	return nil
}

// beginDetach notes that a DEL begins, and says whether an earlier one did not come to its end.
func (n *Network) beginDetach(key pod.Key) (repeated bool, err error) {
	said, _ := os.ReadFile(n.idFile(key))
	if string(said) == detaching {
		return true, nil
	}
	if err := os.WriteFile(n.idFile(key), []byte(detaching), 0o600); err != nil {
		return false, fmt.Errorf("note that a DEL begins: %w", err)
	}
	return false, nil
}

// restoreCache writes libcni's cache of an attachment again (its format "cniCacheV1"), because
// libcni takes the previous result that plugins want on DEL from nowhere else.
func (n *Network) restoreCache(list *libcni.NetworkConfigList, rt *libcni.RuntimeConf, network *pod.Network) error {
	if network == nil || len(network.Result) == 0 {
		return nil
	}
	data, err := json.Marshal(map[string]any{
		"kind": libcni.CNICacheV1, "containerId": rt.ContainerID, "config": list.Bytes, "ifName": rt.IfName,
		"networkName": list.Name, "netns": rt.NetNS, "cniArgs": rt.Args, "capabilityArgs": rt.CapabilityArgs,
		"result": json.RawMessage(network.Result),
	})
	if err != nil {
		return fmt.Errorf("cni result of the journal: %w", err)
	}
	dir := filepath.Join(n.opts.CacheDir, "results")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("cni cache: %w", err)
	}
	n.cache.add(pod.Key(rt.ContainerID), entry{list.Name, rt.IfName})
	name := fmt.Sprintf("%s-%s-%s", list.Name, rt.ContainerID, rt.IfName)
	if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
		return fmt.Errorf("cni cache: %w", err)
	}
	return nil
}

// known says whether plugins may know something of a pod.
func (n *Network) known(key pod.Key) bool {
	if _, err := os.Stat(n.idFile(key)); err == nil {
		return true
	}
	return n.cache.has(key)
}

func (n *Network) forget(key pod.Key) {
	_ = os.Remove(n.idFile(key))
	n.cache.forget(key)
	n.setLive(key, false)
}

func (n *Network) idFile(key pod.Key) string {
	return filepath.Join(n.opts.CacheDir, idsDir, string(key))
}

func deadline(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, d, fmt.Errorf("no answer within %s: %w", d, context.DeadlineExceeded))
}
