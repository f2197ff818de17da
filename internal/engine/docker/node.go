package docker

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/client"
	"github.com/moby/moby/client/pkg/versions"

	"gantry/internal/cgroup"
	"gantry/internal/ocispec"
)

// leastAPI is the oldest API version that the client speaks: Docker 19.03's. 20.10 has 1.41.
const leastAPI = "1.40"

// node is what the daemon and the machine said of themselves. It is asked for when the engine first
// needs it, and again after the connection broke: another version may have come up.
type node struct {
	driver   cgroup.Driver
	cgroupV2 bool
	api      string // the version that is spoken
	info     system.Info
	oomScore int // nothing may have a lower oom_score_adj
	apparmor bool
	selinux  bool
	remapped bool // the daemon maps users' ids
	swap     bool // swap can be limited
}

// node returns what is known of the daemon, asking it when nothing is.
func (e *Engine) node(ctx context.Context) (*node, error) {
	if n := e.known.Load(); n != nil {
		return n, nil
	}
	r, err := call(ctx, e.daemon, func(ctx context.Context) (client.SystemInfoResult, error) {
		return e.daemon.api.Info(ctx, client.InfoOptions{})
	})
	if err != nil {
		return nil, fmt.Errorf("ask docker about itself: %w", e.daemon.cannotSay(err))
	}
	facts, err := ocispec.NodeFacts()
	if err != nil {
		return nil, err
	}
	n, err := nodeOf(r.Info, e.daemon.api.ClientVersion(), facts.OOMScoreAdj)
	if err != nil {
		return nil, err
	}
	e.known.Store(n)
	return n, nil
}

func nodeOf(info system.Info, api string, oomScore int) (*node, error) {
	if versions.LessThan(api, leastAPI) {
		return nil, fmt.Errorf("docker %s speaks API %s, %s is needed: %w", info.ServerVersion, api, leastAPI, errdefs.ErrUnavailable)
	}
	driver, err := cgroup.ParseDriver(info.CgroupDriver)
	if err != nil {
		return nil, fmt.Errorf("docker: %w", err)
	}
	has := func(option string) bool {
		return slices.ContainsFunc(info.SecurityOptions, func(s string) bool {
			return s == "name="+option || strings.HasPrefix(s, "name="+option+",")
		})
	}
	return &node{
		driver: driver, cgroupV2: info.CgroupVersion == "2", api: api, info: info, oomScore: oomScore,
		apparmor: has("apparmor"), selinux: has("selinux"), remapped: has("userns"),
		swap: info.SwapLimit,
	}, nil
}

// speaks says whether the API is of a version or later.
func (n *node) speaks(version string) bool { return versions.GreaterThanOrEqualTo(n.api, version) }

// usernsMode keeps pods in the node's user namespace, as the CRI has it, where the daemon maps ids.
func (n *node) usernsMode() container.UsernsMode {
	if n.remapped {
		return "host"
	}
	return ""
}

// containerCgroup is where a container's processes are below the parent that Docker was told.
func (n *node) containerCgroup(parent, id string) string {
	if n.driver == cgroup.Systemd {
		if parent == "" {
			parent = "system.slice"
		}
		slice, err := cgroup.ExpandSlice(path.Base(parent))
		if err != nil {
			return ""
		}
		return path.Join(slice, "docker-"+id+".scope")
	}
	if parent == "" {
		parent = "/docker"
	}
	return path.Join("/", parent, id)
}
