package lab_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"gantry/internal/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

func TestMachineOfItsOwn(t *testing.T) {
	if entries, err := os.ReadDir("/run"); err != nil || len(entries) > 0 {
		t.Errorf("/run is not private: %v, %v", entries, err)
	}
	if _, err := os.Stat("/sys/fs/cgroup/unified/cgroup.procs"); err == nil {
		t.Error("cgroup v2 is still mounted beside v1")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("loopback: %v", err)
	}
	_ = l.Close()
	if os.Getppid() != 1 {
		t.Errorf("parent %d is not the namespace's init", os.Getppid())
	}
}

// recorder is a test that ends when end is called.
type recorder struct {
	testing.TB
	cleanup []func()
	errors  []string
}

func (r *recorder) Cleanup(f func()) { r.cleanup = append(r.cleanup, f) }

func (r *recorder) Errorf(format string, args ...any) {
	r.errors = append(r.errors, fmt.Sprintf(format, args...))
}

func (r *recorder) end() {
	for _, f := range r.cleanup {
		f()
	}
}

func TestCgroupIsRemovedOrTheTestFails(t *testing.T) {
	r := &recorder{TB: t}
	top := "/sys/fs/cgroup"
	if _, err := os.Stat(top + "/cgroup.controllers"); err != nil {
		top += "/pids" // v1
	}
	path := lab.CgroupFor(r, 100*time.Millisecond)
	dir := filepath.Join(top, path)
	inside := filepath.Join(dir, "container")
	if err := os.MkdirAll(inside, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := strconv.Itoa(cmd.Process.Pid)
	if err := os.WriteFile(filepath.Join(inside, "cgroup.procs"), []byte(pid), 0o644); err != nil {
		t.Fatal(err)
	}
	r.end()
	if len(r.errors) != 1 || !strings.Contains(r.errors[0], inside) || !strings.Contains(r.errors[0], pid) {
		t.Errorf("a test that leaves process %s is told %q", pid, r.errors)
	}

	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = cmd.Wait() }() // it may still be there when the test ends
	left := lab.RemoveCgroup(path)
	if _, err := os.Stat(dir); err == nil || len(left) > 0 {
		t.Errorf("a killed process's cgroup stays: %q, %v", left, err)
	}
}
