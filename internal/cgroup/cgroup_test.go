package cgroup_test

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"gantry/internal/cgroup"
	"gantry/internal/lab"
	"gantry/internal/pod"
)

func TestMain(m *testing.M) { lab.Main(m) }

// tree writes files below a new directory and returns it.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func open(t *testing.T, root string) *cgroup.FS {
	t.Helper()
	f, err := cgroup.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestOpenTellsTheHierarchies(t *testing.T) {
	tests := map[string]struct {
		files map[string]string
		want  cgroup.Mode
		has   string
		lacks string
	}{
		"v2": {
			files: map[string]string{"cgroup.controllers": "cpu memory pids\n", "cgroup.procs": ""},
			want:  cgroup.V2, has: "memory", lacks: "hugetlb",
		},
		"v1 with cpu and cpuacct apart": {
			files: map[string]string{"cpu/cgroup.procs": "", "cpuacct/cgroup.procs": "", "unified/other": ""},
			want:  cgroup.V1, has: "cpuacct", lacks: "memory",
		},
		"v1 with cpu and cpuacct together": {
			files: map[string]string{"cpu,cpuacct/cgroup.procs": ""},
			want:  cgroup.V1, has: "cpu", lacks: "unified",
		},
		"hybrid, the controller on v2": {
			files: map[string]string{
				"memory/cgroup.procs": "", "unified/cgroup.procs": "", "unified/cgroup.controllers": "hugetlb\n",
			},
			want: cgroup.Hybrid, has: "hugetlb", lacks: "cpu",
		},
	}
	for rule, tt := range tests {
		t.Run(rule, func(t *testing.T) {
			f := open(t, tree(t, tt.files))
			if f.Mode() != tt.want {
				t.Errorf("mode %s, want %s", f.Mode(), tt.want)
			}
			if !f.Has(tt.has) || f.Has(tt.lacks) {
				t.Errorf("has %s: %v, has %s: %v", tt.has, f.Has(tt.has), tt.lacks, f.Has(tt.lacks))
			}
		})
	}
	if _, err := cgroup.Open(t.TempDir()); !errdefs.IsNotFound(err) {
		t.Errorf("nothing mounted: %v", err)
	}
}

func TestReadV2(t *testing.T) {
	f := open(t, tree(t, map[string]string{
		"cgroup.controllers":      "cpu memory pids\n",
		"p/c/cpu.stat":            "usage_usec 1500000\nuser_usec 1000000\n",
		"p/c/memory.current":      "10000\n",
		"p/c/memory.max":          "max\n",
		"p/c/memory.swap.current": "300\n",
		"p/c/memory.stat":         "anon 4000\nfile 6000\ninactive_file 2500\npgfault 7\npgmajfault 2\n",
		"p/c/pids.current":        "3\n",
		"p/idle/memory.current":   "100\n",
		"p/idle/memory.stat":      "inactive_file 500\n",
		"p/idle/memory.max":       "4096\n",
	}))
	want := &pod.Stats{
		CPUUsage: 1500 * time.Millisecond, MemoryUsage: 10000, MemoryWorkingSet: 7500, MemoryRSS: 4000,
		PageFaults: 7, MajorPageFaults: 2, SwapUsage: 300, Processes: 3,
	}
	got, err := f.Read("/p/c")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(pod.Stats{}, "At")); diff != "" {
		t.Error(diff)
	}
	if time.Since(got.At) > time.Minute {
		t.Errorf("taken at %v", got.At)
	}
	idle, err := f.Read("/p/idle")
	if err != nil || idle.MemoryWorkingSet != 0 || idle.MemoryLimit != 4096 {
		t.Errorf("more inactive than used: %+v, %v", idle, err)
	}
	if _, err := f.Read("/p/absent"); !errdefs.IsNotFound(err) {
		t.Errorf("absent cgroup: %v", err)
	}
}

func TestReadV1(t *testing.T) {
	f := open(t, tree(t, map[string]string{
		"cpu/cgroup.procs": "", "cpuacct/cgroup.procs": "", "memory/cgroup.procs": "", "pids/cgroup.procs": "",
		"cpuacct/p/cpuacct.usage":        "2500\n",
		"memory/p/memory.usage_in_bytes": "9000\n",
		"memory/p/memory.limit_in_bytes": "9223372036854771712\n",
		"memory/p/memory.stat":           "inactive_file 1\ntotal_rss 5\ntotal_inactive_file 4000\ntotal_pgfault 8\ntotal_pgmajfault 1\ntotal_swap 6\n",
		"pids/p/pids.current":            "2\n",
	}))
	want := &pod.Stats{
		CPUUsage: 2500, MemoryUsage: 9000, MemoryWorkingSet: 5000, MemoryRSS: 5,
		PageFaults: 8, MajorPageFaults: 1, SwapUsage: 6, Processes: 2,
	}
	got, err := f.Read("/p")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(pod.Stats{}, "At")); diff != "" {
		t.Error(diff)
	}
}

func TestSetLimitsV2(t *testing.T) {
	root := tree(t, map[string]string{
		"cgroup.controllers": "cpu memory\n", "p/cpu.max": "max 100000\n", "p/cpu.weight": "100\n", "p/memory.max": "max\n",
	})
	f := open(t, root)
	if err := f.SetLimits("/p", &pod.Resources{CPUQuota: 50000, CPUShares: 1024, MemoryLimit: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{"cpu.max": "50000 100000", "cpu.weight": "39", "memory.max": "1048576"} {
		// The fixture keeps what a longer old value leaves behind; a cgroup file does not.
		if got, _ := os.ReadFile(filepath.Join(root, "p", file)); !strings.HasPrefix(string(got), want) {
			t.Errorf("%s = %q, want %q", file, got, want)
		}
	}
	if err := f.SetLimits("/absent", &pod.Resources{}); !errdefs.IsNotFound(err) {
		t.Errorf("absent cgroup: %v", err)
	}
}

func TestWriteV2(t *testing.T) {
	root := tree(t, map[string]string{"cgroup.controllers": "memory\n", "c/memory.oom.group": "0\n", "c/memory.swap.max": "max\n"})
	f := open(t, root)
	if err := f.Write("/c", map[string]string{"memory.oom.group": "1", "memory.swap.max": "777"}); err != nil {
		t.Fatal(err)
	}
	if group, swap := f.Value("/c", "memory.oom.group"), f.Value("/c", "memory.swap.max"); group != "1" || swap[:3] != "777" {
		t.Errorf("memory.oom.group %q, memory.swap.max %q", group, swap)
	}
	if err := f.Write("/c", map[string]string{"memory.none": "1"}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a file that is not there: %v", err)
	}
	if err := f.Write("/absent", map[string]string{"memory.oom.group": "1"}); !errdefs.IsNotFound(err) {
		t.Errorf("absent cgroup: %v", err)
	}
	if got := f.Value("/absent", "memory.oom.group") + f.Value("/c/..", "cgroup.controllers"); got != "" {
		t.Errorf("values of nothing: %q", got)
	}
	v1 := open(t, tree(t, map[string]string{"memory/cgroup.procs": "", "memory/c/memory.oom.group": "0"}))
	if err := v1.Write("/c", map[string]string{"memory.oom.group": "1"}); !errdefs.IsNotFound(err) {
		t.Errorf("on v1: %v", err)
	}
}

// busy starts a process with a child in the cgroup, in every hierarchy below root. It returns when both have done
// what they do: the shell waits for its child, which has become cat and waits for more to come.
func busy(t *testing.T, root, path string) {
	t.Helper()
	cmd := exec.CommandContext(context.Background(), "sh", "-c", `trap "" TERM; read go; exec 3<&0; cat <&3 & wait`)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	found, _ := filepath.Glob(root + "/*" + path + "/cgroup.procs")
	found = append(found, root+path+"/cgroup.procs")
	joined := 0
	for _, procs := range found {
		if err := os.WriteFile(procs, []byte(strconv.Itoa(cmd.Process.Pid)), 0o600); err == nil {
			joined++
		} else if !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	if joined == 0 {
		t.Fatalf("no hierarchy has %s", path)
	}
	if _, err := io.WriteString(stdin, "go\nready\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, len("ready\n"))); err != nil {
		t.Fatal(err)
	}
}

// mountV2 mounts the unified hierarchy alone and returns where.
func mountV2(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	if err := unix.Mount("cgroup2", root, "cgroup2", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(root, unix.MNT_DETACH) })
	return root
}

func TestRemoveKillsWhatIsInside(t *testing.T) {
	for rule, root := range map[string]string{"as the machine has it": cgroup.DefaultRoot, "v2": mountV2(t)} {
		t.Run(rule, func(t *testing.T) {
			f := open(t, root)
			top := lab.Cgroup(t)
			leaf := top + "/container/child"
			for range 2 {
				if err := f.Create(leaf); err != nil {
					t.Fatal(err)
				}
			}
			t.Cleanup(func() { _ = f.Remove(context.Background(), top) })
			busy(t, root, leaf)
			pids, err := f.Pids(top)
			if err != nil || len(pids) != 2 {
				t.Fatalf("processes %v, %v, want a shell and its child", pids, err)
			}
			if members, err := f.Members(top); err != nil || !slices.Equal(members, pids) {
				t.Errorf("members %v, %v, want %v", members, err, pids)
			}
			if err := f.RemoveEmpty(top); !errors.Is(err, unix.EBUSY) {
				t.Errorf("RemoveEmpty of a busy cgroup: %v", err)
			}
			for range 2 {
				if err := f.Remove(t.Context(), top); err != nil {
					t.Fatal(err)
				}
			}
			if f.Exists(top) {
				t.Error("the cgroup is still there")
			}
			if left, err := f.Pids(top); err != nil || len(left) > 0 {
				t.Errorf("processes left %v, %v", left, err)
			}
		})
	}
}

func TestCreateDelegatesControllers(t *testing.T) {
	root := mountV2(t)
	f := open(t, root)
	if f.Mode() != cgroup.V2 {
		t.Fatalf("mode %s", f.Mode())
	}
	offered, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	if err != nil {
		t.Fatal(err)
	}
	top := lab.Cgroup(t)
	t.Cleanup(func() { _ = f.Remove(context.Background(), top) })
	if err = f.Create(top + "/child"); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(root, top, "child", "cgroup.controllers"))
	if err != nil || string(got) != string(offered) {
		t.Errorf("the child has %q, %v, the root offers %q", got, err, offered)
	}
}

func TestRemoveTakesWhatCrunForgetsWhereV2IsNotMounted(t *testing.T) {
	root := tree(t, map[string]string{"memory/cgroup.procs": "", "unified/p/c/cgroup.procs": "1\n"})
	if err := open(t, root).Remove(t.Context(), "/p"); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(filepath.Join(root, "unified")); err != nil || len(left) > 0 {
		t.Errorf("left behind %v, %v", left, err)
	}
}

func TestSetLimitsOnTheNode(t *testing.T) {
	f := open(t, cgroup.DefaultRoot)
	path := lab.Cgroup(t)
	if err := f.Create(path); err != nil {
		t.Fatal(err)
	}
	err := f.SetLimits(path, &pod.Resources{CPUPeriod: 50000, CPUQuota: 25000, CPUShares: 512, MemoryLimit: 64 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if s, err := f.Read(path); err != nil || s.MemoryLimit != 64<<20 {
		t.Errorf("memory limit %+v, %v", s, err)
	}
}

func TestPathsThatAreRefused(t *testing.T) {
	f := open(t, cgroup.DefaultRoot)
	for _, path := range []string{"", "/", "relative", "/a/../..", "/a/", "//a"} {
		if err := f.Create(path); !errdefs.IsInvalidArgument(err) {
			t.Errorf("create %q: %v", path, err)
		}
		if err := f.Remove(t.Context(), path); !errdefs.IsInvalidArgument(err) {
			t.Errorf("remove %q: %v", path, err)
		}
		if err := f.Kill(path); !errdefs.IsInvalidArgument(err) {
			t.Errorf("kill %q: %v", path, err)
		}
	}
}
