package doctor

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"gantry/internal/cgroup"
)

// mendHybrid has the ways out: the machine's, one that hides the v2 hierarchy from the server alone,
// and the other runtime. The namespace is kept, because the next server must find the mounts of the
// last; its file lies on a private mount, because nsfs can't be bound to a shared one.
const mendHybrid = "boot with systemd.unified_cgroup_hierarchy=1 for cgroup v2 alone; " +
	"or hide the v2 hierarchy from gantry, once a boot: " +
	"mkdir -p /run/gantry-ns && mount --bind --make-private /run/gantry-ns /run/gantry-ns && touch /run/gantry-ns/mnt && " +
	"unshare --mount=/run/gantry-ns/mnt umount /sys/fs/cgroup/unified, and start every server there: nsenter --mount=/run/gantry-ns/mnt gantry serve; " +
	"or use runc: gantry serve --default-runtime runc"

func checkCgroup(_ context.Context, n *node) []Finding {
	fs, err := cgroup.Open(filepath.Join("/", n.Root, cgroup.DefaultRoot))
	if err != nil {
		return one(Fail, err.Error(), "mount -t cgroup2 none "+cgroup.DefaultRoot)
	}
	found := cgroupMode(n, fs.Mode())
	var missing, minor []string
	for _, c := range []string{"cpu", "memory", "pids"} {
		if !fs.Has(c) {
			missing = append(missing, c)
		}
	}
	for _, c := range []string{"cpuset", "hugetlb"} {
		if !fs.Has(c) {
			minor = append(minor, c)
		}
	}
	if len(missing) > 0 {
		found = append(found, Finding{Level: Fail, Message: "controllers are missing: " + strings.Join(missing, ", "),
			Mend: "remove cgroup_disable= from the kernel's command line; inside a container, delegate them"})
	}
	if len(minor) > 0 {
		found = append(found, Finding{Level: Warn, Message: "controllers are missing: " + strings.Join(minor, ", ") + "; pods that ask for them fail"})
	}
	if n.Config.Cgroup.Driver == "systemd" && !n.exists("run/systemd/system") {
		found = append(found, Finding{Level: Fail, Message: "cgroup.driver is systemd, but systemd does not run", Mend: "--cgroup-driver cgroupfs, and the same in the kubelet's configuration"})
	}
	return found
}

func cgroupMode(n *node, mode cgroup.Mode) []Finding {
	switch mode {
	case cgroup.V2:
		return one(OK, "cgroup v2", "")
	case cgroup.V1:
		return one(Warn, "cgroup v1: the kubelet from 1.35 on refuses it unless told failCgroupV1: false", "boot with systemd.unified_cgroup_hierarchy=1")
	}
	level := Warn
	if n.Config.Runtime.Default == "crun" {
		level = Fail
	}
	_, crun := n.Config.Runtime.Paths["crun"]
	if !crun {
		return one(Warn, "cgroup v1 with v2 beside it (hybrid)", "boot with systemd.unified_cgroup_hierarchy=1")
	}
	return one(level, fmt.Sprintf("cgroup v1 with v2 beside it at %s/unified (hybrid): crun refuses to run (\"cgroups in hybrid mode not supported\")", cgroup.DefaultRoot), mendHybrid)
}
