// Package cgroup reads and changes cgroups by path, on the unified hierarchy (v2) and on v1
// hierarchies, alone or with v2 beside them (hybrid). A path is the same in every hierarchy, begins
// with "/" and is relative to the mount.
package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// DefaultRoot is where Linux distributions mount cgroups.
const DefaultRoot = "/sys/fs/cgroup"

// Mode says which hierarchies a node has.
type Mode string

// The modes of a node. Hybrid is v1 with a v2 hierarchy beside it.
const (
	V2     Mode = "v2"
	V1     Mode = "v1"
	Hybrid Mode = "hybrid"
)

// FS is the cgroups of a node. It is safe for concurrent use.
type FS struct {
	mode        Mode
	hierarchies []string          // directories, each once
	controllers map[string]string // v1: controller → directory of its hierarchy
	unified     string            // directory of the v2 hierarchy, "" on plain v1
	unmounted   string            // directory where v2 could be mounted beside v1, but is not; or ""
	kept        *kept
}

// Open finds the hierarchies mounted at root, DefaultRoot on a real node.
func Open(root string) (*FS, error) {
	if exists(filepath.Join(root, "cgroup.controllers")) {
		return &FS{mode: V2, hierarchies: []string{root}, unified: root, kept: newKept()}, nil
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil, fmt.Errorf("find cgroups: %w", err)
	}
	f := &FS{mode: V1, controllers: make(map[string]string), kept: newKept()}
	for _, e := range entries {
		f.add(root, e.Name())
	}
	if len(f.hierarchies) == 0 {
		return nil, fmt.Errorf("no cgroup hierarchy is mounted at %s: %w", root, errdefs.ErrNotFound)
	}
	return f, nil
}

// add takes the hierarchy root/name, where it is one. Distributions mount "cpu,cpuacct" and link
// "cpu" and "cpuacct" to it.
func (f *FS) add(root, name string) {
	dir, err := filepath.EvalSymlinks(filepath.Join(root, name))
	if err != nil {
		return
	}
	if !exists(filepath.Join(dir, "cgroup.procs")) {
		if name == "unified" {
			// crun makes plain directories and files here and forgets them.
			f.unmounted = dir
		}
		return
	}
	if exists(filepath.Join(dir, "cgroup.controllers")) {
		f.mode, f.unified = Hybrid, dir
	} else {
		for c := range strings.SplitSeq(name, ",") {
			f.controllers[c] = dir
		}
	}
	if !slices.Contains(f.hierarchies, dir) {
		f.hierarchies = append(f.hierarchies, dir)
	}
}

// Mode says which hierarchies there are.
func (f *FS) Mode() Mode { return f.mode }

// Has says whether the node has a controller, such as "hugetlb".
func (f *FS) Has(controller string) bool {
	if _, ok := f.controllers[controller]; ok {
		return true
	}
	if f.unified == "" {
		return false
	}
	data, err := os.ReadFile(filepath.Join(f.unified, "cgroup.controllers"))
	return err == nil && slices.Contains(strings.Fields(string(data)), controller)
}

// AccountsSwap says whether swap can be limited.
func (f *FS) AccountsSwap() bool {
	if dir, ok := f.controllers["memory"]; ok {
		return exists(filepath.Join(dir, "memory.memsw.limit_in_bytes"))
	}
	if f.mode != V2 {
		return false
	}
	// The root has no limits; its children show what the kernel offers.
	found, _ := filepath.Glob(filepath.Join(f.unified, "*", "memory.swap.max"))
	return len(found) > 0
}

// Exists says whether the cgroup is there, in any hierarchy.
func (f *FS) Exists(cgroup string) bool {
	return slices.ContainsFunc(f.hierarchies, func(h string) bool { return exists(filepath.Join(h, cgroup)) })
}

// Create makes the cgroup and its ancestors in every hierarchy, with every controller that the
// ancestors offer. A cgroup that exists is no error.
func (f *FS) Create(cgroup string) error {
	if err := check(cgroup); err != nil {
		return err
	}
	for _, h := range f.hierarchies {
		if err := f.createIn(h, cgroup); err != nil {
			return fmt.Errorf("create cgroup %s: %w", cgroup, err)
		}
	}
	return nil
}

func (f *FS) createIn(hierarchy, cgroup string) error {
	dir := hierarchy
	for part := range strings.SplitSeq(strings.Trim(cgroup, "/"), "/") {
		if hierarchy == f.unified {
			delegate(dir)
		}
		parent := dir
		dir = filepath.Join(dir, part)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if hierarchy == f.controllers["cpuset"] {
			if err := inheritCPUSet(parent, dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// delegate turns on the controllers of dir for its children, each alone: one that the kernel refuses
// here does not hold up the others, and whoever needs it will say so.
func delegate(dir string) {
	offered, _ := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	enabled, _ := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
	have := strings.Fields(string(enabled))
	for _, c := range strings.Fields(string(offered)) {
		if !slices.Contains(have, c) {
			_ = writeFile(filepath.Join(dir, "cgroup.subtree_control"), "+"+c)
		}
	}
}

// inheritCPUSet fills an empty v1 cpuset, in which no process can live, from its parent.
func inheritCPUSet(parent, dir string) error {
	for _, name := range []string{"cpuset.cpus", "cpuset.mems"} {
		own, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || strings.TrimSpace(string(own)) != "" {
			continue
		}
		inherited, err := os.ReadFile(filepath.Join(parent, name))
		if err != nil {
			return err
		}
		if err := writeFile(filepath.Join(dir, name), strings.TrimSpace(string(inherited))); err != nil {
			return err
		}
	}
	return nil
}

// Pids lists the processes in the cgroup and below it, in any hierarchy, each once. An absent cgroup
// has none.
func (f *FS) Pids(cgroup string) ([]int, error) { return pidsIn(f.hierarchies, cgroup) }

// Members is Pids of the one hierarchy that counts processes. Where a container is in all hierarchies
// alike it says the same as Pids, for less.
func (f *FS) Members(cgroup string) ([]int, error) {
	in := f.hierarchies[0]
	if dir, ok := f.controllers["pids"]; ok {
		in = dir
	}
	return pidsIn([]string{in}, cgroup)
}

func pidsIn(hierarchies []string, cgroup string) ([]int, error) {
	if err := check(cgroup); err != nil {
		return nil, err
	}
	var pids []int
	for _, h := range hierarchies {
		err := walk(filepath.Join(h, cgroup), func(dir string) error {
			found, err := procs(dir)
			pids = append(pids, found...)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("processes of cgroup %s: %w", cgroup, err)
		}
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}

// procs lists the processes of one directory. The kernel writes 0 for one outside our PID namespace.
func procs(dir string) ([]int, error) {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if gone(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var pids []int
	for field := range strings.FieldsSeq(string(data)) {
		if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// walk calls fn for dir and every cgroup below it, parents first. What vanishes is skipped.
func walk(dir string, fn func(dir string) error) error {
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		switch {
		case gone(err):
			return nil
		case err != nil:
			return err
		case d.IsDir():
			return fn(p)
		}
		return nil
	})
	if gone(err) {
		return nil
	}
	return err
}

// check refuses the root and whatever is not a clean absolute path, so that no caller's mistake
// reaches the node's own cgroups.
func check(cgroup string) error {
	if !strings.HasPrefix(cgroup, "/") || path.Clean(cgroup) != cgroup || cgroup == "/" {
		return fmt.Errorf("cgroup path %q is not absolute and clean: %w", cgroup, errdefs.ErrInvalidArgument)
	}
	return nil
}

func exists(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}

func writeFile(name, value string) error { return os.WriteFile(name, []byte(value), 0o644) }
