package docker_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/moby/moby/client"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"gantry/internal/engine"
	"gantry/internal/labdocker"
	"gantry/internal/netns"
	"gantry/internal/pod"
)

// TestPauseImageThatWasRemoved takes the image away between two pods.
func TestPauseImageThatWasRemoved(t *testing.T) {
	for _, v := range labdocker.Versions() {
		t.Run(string(v), func(t *testing.T) {
			s := newStationOn(t, labdocker.Start(t, labdocker.Options{Version: v}))
			for range 2 {
				spec := &pod.SandboxSpec{
					Key: pod.NewKey(), Metadata: pod.Metadata{Name: "pause", Namespace: "lab", UID: "uid"}, CgroupParent: s.dockerd.Cgroup,
					Namespaces: pod.Namespaces{Network: pod.NamespacePod, IPC: pod.NamespacePod},
				}
				if _, err := s.CreateSandbox(t.Context(), spec, engine.Files{}); err != nil {
					t.Fatal(err)
				}
				if err := errors.Join(s.StopSandbox(t.Context(), spec.Key), s.RemoveSandbox(t.Context(), spec.Key)); err != nil {
					t.Fatal(err)
				}
				s.dockerd.Docker("rmi", "localhost/gantry-pause:1")
			}
		})
	}
}

// TestPauseIsConfined looks at the pause container from the kernel's side.
func TestPauseIsConfined(t *testing.T) {
	for _, v := range labdocker.Versions() {
		t.Run(string(v), func(t *testing.T) {
			s := newStationOn(t, labdocker.Start(t, labdocker.Options{Version: v}))
			spec := &pod.SandboxSpec{
				Key: pod.NewKey(), Metadata: pod.Metadata{Name: "pause", Namespace: "lab", UID: "uid"}, CgroupParent: s.dockerd.Cgroup,
				Namespaces: pod.Namespaces{Network: pod.NamespacePod, IPC: pod.NamespacePod},
			}
			made, err := s.CreateSandbox(t.Context(), spec, engine.Files{})
			if err != nil {
				t.Fatal(err)
			}
			api, err := client.New(client.WithHost(s.dockerd.Endpoint()))
			if err != nil {
				t.Fatal(err)
			}
			is, err := api.ContainerInspect(t.Context(), made.ID, client.ContainerInspectOptions{})
			if err != nil {
				t.Fatal(err)
			}
			var status []byte // Docker answers before the runtime gives way to the program, which it confines last
			if !within(t, func() bool {
				status, err = os.ReadFile(fmt.Sprintf("/proc/%d/status", is.Container.State.Pid))
				return err == nil && strings.Contains(string(status), "\nSeccomp:\t2\n") && strings.Contains(string(status), "\nNoNewPrivs:\t1\n")
			}) {
				t.Errorf("status of the pause program: %s, %v; want a filter and no new privileges", status, err)
			}
			err = netns.Do(made.NetNS, func() error {
				lo, absent := netlink.LinkByName("lo")
				if absent == nil && lo.Attrs().RawFlags&unix.IFF_UP == 0 {
					return errors.New("the loopback is down")
				}
				return absent
			})
			if err != nil {
				t.Error(err)
			}
			if err = errors.Join(s.StopSandbox(t.Context(), spec.Key), s.RemoveSandbox(t.Context(), spec.Key)); err != nil {
				t.Error(err)
			}
		})
	}
}
