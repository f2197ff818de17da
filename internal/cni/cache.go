package cni

import (
	"fmt"
	"sync"

	"github.com/containernetworking/cni/libcni"

	"gantry/internal/pod"
)

// cache is libcni's, where it keeps what a pod was attached with, and an index of it: libcni itself looks
// through all its files for those of one pod. Nobody else writes there.
type cache struct {
	cni *libcni.CNIConfig

	mu   sync.Mutex
	pods map[pod.Key]map[entry]struct{} // guarded by mu; whoever has a file is in it
}

// entry names one file of a pod.
type entry struct{ network, ifName string }

// openCache reads what earlier processes left.
func openCache(c *libcni.CNIConfig) (*cache, error) {
	all, err := c.GetCachedAttachments("")
	if err != nil {
		return nil, fmt.Errorf("cni cache: %w", err)
	}
	x := &cache{cni: c, pods: make(map[pod.Key]map[entry]struct{}, len(all))}
	for _, a := range all {
		x.add(pod.Key(a.ContainerID), entry{a.Network, a.IfName})
	}
	return x, nil
}

// add is called before a file is written.
func (x *cache) add(key pod.Key, e entry) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.pods[key] == nil {
		x.pods[key] = make(map[entry]struct{}, 1)
	}
	x.pods[key][e] = struct{}{}
}

// forget is called when the files of a pod are gone.
func (x *cache) forget(key pod.Key) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.pods, key)
}

func (x *cache) has(key pod.Key) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.pods[key]) > 0
}

// keys are those of every pod that may have a file.
func (x *cache) keys() []pod.Key {
	x.mu.Lock()
	defer x.mu.Unlock()
	all := make([]pod.Key, 0, len(x.pods))
	for key := range x.pods {
		all = append(all, key)
	}
	return all
}

func (x *cache) entries(key pod.Key) []entry {
	x.mu.Lock()
	defer x.mu.Unlock()
	all := make([]entry, 0, len(x.pods[key]))
	for e := range x.pods[key] {
		all = append(all, e)
	}
	return all
}

// attached is what a pod was attached with.
type attached struct {
	network string
	config  []byte
	rt      *libcni.RuntimeConf
}

// attachments are those of one pod; rt is what its plugins would be told now. A file that is gone, or holds
// nothing that libcni can read, counts for none.
func (x *cache) attachments(key pod.Key, rt *libcni.RuntimeConf) []attached {
	var all []attached
	for _, e := range x.entries(key) {
		asked := *rt
		asked.IfName = e.ifName
		config, used, err := x.cni.GetNetworkListCachedConfig(&libcni.NetworkConfigList{Name: e.network}, &asked)
		if err == nil && len(config) > 0 {
			all = append(all, attached{e.network, config, used})
		}
	}
	return all
}
