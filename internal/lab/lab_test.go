package lab_test

import (
	"net"
	"os"
	"testing"

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
