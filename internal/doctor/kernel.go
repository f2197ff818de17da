package doctor

import (
	"bufio"
	"context"
	"fmt"
	"strconv"
	"strings"
)

// version of a kernel.
type version struct{ major, minor int }

func (v version) atLeast(w version) bool {
	return v.major > w.major || v.major == w.major && v.minor >= w.minor
}

func (v version) String() string { return fmt.Sprintf("%d.%d", v.major, v.minor) }

// The kernels that matter: waitid on a pidfd came with 5.4, mount_setattr's recursive read-only with
// 5.12, and exit codes after the fact (PIDFD_GET_INFO) with 6.15.
var (
	kernelNeeded    = version{5, 4}
	kernelRecursive = version{5, 12}
	kernelExitInfo  = version{6, 15}
)

func checkKernel(_ context.Context, n *node) []Finding {
	release := n.read("proc/sys/kernel/osrelease")
	v, ok := parseRelease(release)
	if !ok {
		return one(Warn, fmt.Sprintf("kernel release %q is not understood", release), "")
	}
	switch {
	case !v.atLeast(kernelNeeded):
		return one(Fail, fmt.Sprintf("Linux %s is older than %s: pidfds are missing", release, kernelNeeded), "install a newer kernel")
	case !v.atLeast(kernelRecursive):
		return one(Warn, fmt.Sprintf("Linux %s has no recursive read-only mounts (%s has)", release, kernelRecursive), "install a newer kernel where pods use them")
	case !v.atLeast(kernelExitInfo):
		return one(OK, fmt.Sprintf("Linux %s; exit codes outlive the keeper's holder from %s on", release, kernelExitInfo), "")
	}
	return one(OK, "Linux "+release, "")
}

func parseRelease(s string) (version, bool) {
	major, rest, ok := strings.Cut(s, ".")
	if !ok {
		return version{}, false
	}
	end := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(rest)
	}
	x, errX := strconv.Atoi(major)
	y, errY := strconv.Atoi(rest[:end])
	return version{x, y}, errX == nil && errY == nil
}

func checkNamespaces(_ context.Context, n *node) []Finding {
	var missing []string
	for _, ns := range []string{"mnt", "net", "pid", "ipc", "uts"} {
		if !n.exists("proc/self/ns/" + ns) {
			missing = append(missing, ns)
		}
	}
	switch {
	case len(missing) > 0:
		return one(Fail, "this kernel was built without namespaces: "+strings.Join(missing, ", "), "use a distribution's kernel")
	case !n.exists("proc/self/ns/user") || n.read("proc/sys/user/max_user_namespaces") == "0":
		return one(Warn, "user namespaces are off: pods with hostUsers: false fail", "sysctl -w user.max_user_namespaces=15000")
	}
	return one(OK, "mount, network, pid, ipc, uts and user namespaces", "")
}

// The bits of capabilities(7) that matter here.
const (
	capSysAdmin    = 21
	capSysResource = 24
	capNetAdmin    = 12
)

func checkPrivileges(_ context.Context, n *node) []Finding {
	status := n.status()
	if uid, _, _ := strings.Cut(status["Uid"], "\t"); uid != "0" {
		return one(Fail, "user "+uid+" is not root", "run gantry as root")
	}
	caps, err := strconv.ParseUint(status["CapEff"], 16, 64)
	if err != nil {
		return one(Warn, fmt.Sprintf("capabilities %q are not understood", status["CapEff"]), "")
	}
	var found []Finding
	for bit, name := range map[int]string{capSysAdmin: "CAP_SYS_ADMIN", capNetAdmin: "CAP_NET_ADMIN"} {
		if caps&(1<<bit) == 0 {
			found = append(found, Finding{Level: Fail, Message: name + " is missing: no mounts, namespaces or networks can be made", Mend: "give it to the container or unit that gantry runs in"})
		}
	}
	if caps&(1<<capSysResource) == 0 {
		found = append(found, Finding{Level: Warn,
			Message: "CAP_SYS_RESOURCE is missing: oom_score_adj below the server's own (" + n.read("proc/self/oom_score_adj") + ") is raised to it, and pods with all capabilities get fewer",
			Mend:    "give it to the container or unit that gantry runs in; nothing is to be done where that is not possible"})
	}
	if len(found) == 0 {
		return one(OK, "root with all capabilities that are needed", "")
	}
	return found
}

// status is /proc/self/status: the values with the blanks around them gone.
func (n *node) status() map[string]string {
	fields := map[string]string{}
	lines := bufio.NewScanner(strings.NewReader(n.read("proc/self/status")))
	for lines.Scan() {
		if key, value, ok := strings.Cut(lines.Text(), ":"); ok {
			fields[key] = strings.TrimSpace(value)
		}
	}
	return fields
}

// The keeper holds about ten descriptors a container.
const (
	filesEnough  = 65536
	filesMinimum = 4096
)

func checkLimits(_ context.Context, n *node) []Finding {
	for line := range strings.Lines(n.read("proc/self/limits")) {
		rest, ok := strings.CutPrefix(line, "Max open files")
		fields := strings.Fields(rest)
		if !ok || len(fields) < 2 {
			continue
		}
		hard, err := strconv.Atoi(fields[1])
		const mend = "LimitNOFILE=1048576 in the unit, or ulimit -n"
		switch {
		case fields[1] == "unlimited" || err == nil && hard >= filesEnough:
			return one(OK, "open files: "+fields[1], "")
		case err == nil && hard >= filesMinimum:
			return one(Warn, fmt.Sprintf("at most %d open files: about %d containers", hard, hard/10), mend)
		}
		return one(Fail, fmt.Sprintf("at most %s open files", fields[1]), mend)
	}
	return one(Warn, "the limit of open files is not known", "")
}

func checkSeccomp(_ context.Context, n *node) []Finding {
	if !n.exists("proc/sys/kernel/seccomp/actions_avail") {
		return one(Warn, "this kernel has no seccomp: profiles are not applied", "use a distribution's kernel (CONFIG_SECCOMP_FILTER)")
	}
	return one(OK, "seccomp filters", "")
}

func checkLSM(_ context.Context, n *node) []Finding {
	var on []string
	if n.read("sys/module/apparmor/parameters/enabled") == "Y" {
		on = append(on, "AppArmor")
	}
	switch n.read("sys/fs/selinux/enforce") {
	case "1":
		on = append(on, "SELinux, enforcing")
	case "0":
		on = append(on, "SELinux, permissive")
	}
	if len(on) == 0 {
		return one(OK, "neither AppArmor nor SELinux is active: pods that name a profile of the node's, or a label, are refused", "")
	}
	return one(OK, strings.Join(on, "; "), "")
}
