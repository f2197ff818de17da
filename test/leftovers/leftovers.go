// Package leftovers photographs what a pod could leave behind on a machine, so that a test can say
// that nothing did: network namespaces, links, nftables rules, address leases, mounts, cgroups,
// processes and files. It sees the namespaces it runs in; tests and the demo run in private ones.
package leftovers

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"github.com/vishvananda/netlink"

	"gantry/internal/bridge"
)

// Scope says where to look; everything else is taken as the machine has it.
type Scope struct {
	Dirs    []string // file trees whose names count: roots, state directories, lease directories
	Cgroups []string // cgroup paths, each with what is below it, in every hierarchy
	Ignore  []string // file name patterns (path.Match, on the full path) that do not count
}

// Snapshot is what was there: lines by kind.
type Snapshot map[string][]string

// Take looks at the machine. What ends while it looks is as good as gone.
func Take(ctx context.Context, scope Scope) (Snapshot, error) {
	s := Snapshot{}
	for kind, look := range map[string]func() ([]string, error){
		"netns":    func() ([]string, error) { return names("/run/netns") },
		"link":     links,
		"nftables": func() ([]string, error) { return rules(ctx) },
		"mount":    mounts,
		"cgroup":   func() ([]string, error) { return cgroups(scope.Cgroups) },
		"process":  processes,
		"file":     func() ([]string, error) { return files(scope) },
	} {
		found, err := look()
		if err != nil {
			return nil, fmt.Errorf("look for %s: %w", kind, err)
		}
		slices.Sort(found)
		s[kind] = found
	}
	return s, nil
}

// Since returns what is in s and was not in before, each with its kind in front.
func (s Snapshot) Since(before Snapshot) []string {
	var left []string
	for _, kind := range slices.Sorted(maps.Keys(s)) {
		had := map[string]int{}
		for _, line := range before[kind] {
			had[line]++
		}
		for _, line := range s[kind] {
			if had[line]--; had[line] < 0 {
				left = append(left, kind+" "+line)
			}
		}
	}
	return left
}

func names(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if os.IsNotExist(err) {
		return nil, nil
	}
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all, err
}

func links() ([]string, error) {
	found, err := bridge.Whole(netlink.LinkList)
	var all []string
	for _, l := range found {
		all = append(all, l.Type()+" "+l.Attrs().Name)
	}
	return all, err
}

// rules lists the ruleset without counters, a line a rule or element.
func rules(ctx context.Context) ([]string, error) {
	out, err := exec.CommandContext(ctx, "nft", "--stateless", "list", "ruleset").Output()
	if err != nil {
		return nil, fmt.Errorf("nft list ruleset: %w", err)
	}
	var all []string
	for line := range strings.Lines(string(out)) {
		if line = strings.TrimSpace(line); line != "" && line != "}" {
			all = append(all, line)
		}
	}
	return all, nil
}

func mounts() ([]string, error) {
	found, err := mountinfo.GetMounts(nil)
	var all []string
	for _, m := range found {
		all = append(all, m.FSType+" "+m.Mountpoint)
	}
	return all, err
}

func cgroups(paths []string) ([]string, error) {
	mounted, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, err
	}
	var all []string
	for _, m := range mounted {
		for _, p := range paths {
			err = filepath.WalkDir(filepath.Join(m.Mountpoint, p), func(path string, d fs.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					all = append(all, path)
				}
				return nil
			})
			if err != nil {
				return nil, err
			}
		}
	}
	return all, nil
}

// processes lists the command lines in this PID namespace, this process left out: a server that was
// started again with the same arguments is no leftover, a zombie is one.
func processes() ([]string, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var all []string
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		comm, err := os.ReadFile(filepath.Join("/proc", e.Name(), "comm"))
		if err != nil {
			continue
		}
		cmdline, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if len(cmdline) == 0 {
			cmdline = []byte("[" + strings.TrimSpace(string(comm)) + "]")
		}
		all = append(all, strings.TrimSpace(strings.ReplaceAll(string(cmdline), "\x00", " ")))
	}
	return all, nil
}

// files names what lies in the scope's trees; mounts count as themselves, not with what is in them.
func files(scope Scope) ([]string, error) {
	var all []string
	for _, dir := range scope.Dirs {
		mounted := map[string]bool{}
		mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir + "/"))
		if err != nil {
			return nil, err
		}
		for _, m := range mounts {
			mounted[m.Mountpoint] = true
		}
		err = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if err != nil { // it went away while we looked
				return nil
			}
			if !ignored(scope.Ignore, path) {
				all = append(all, path)
			}
			if mounted[path] {
				return fs.SkipDir
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

func ignored(patterns []string, path string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		ok, _ := filepath.Match(p, path)
		return ok
	})
}
