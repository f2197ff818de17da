package docker_test

import (
	"bytes"
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/client"

	"gantry/internal/engine"
	"gantry/internal/engine/docker"
	"gantry/internal/pod"
)

func TestRequests(t *testing.T) {
	uid, gid := int64(1000), int64(2000)
	profile := filepath.Join(t.TempDir(), "profile.json")
	if err := os.WriteFile(profile, []byte("{ \"defaultAction\":\n \"SCMP_ACT_ALLOW\" }"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		rule string
		ask  func(*engine.Create)
		ok   func(client.ContainerCreateOptions) bool
	}{
		{"the name is dockershim's", func(*engine.Create) {}, func(o client.ContainerCreateOptions) bool { return o.Name == "k8s_main_web_shop_uid_0" }},
		{"the key is a label", func(*engine.Create) {}, func(o client.ContainerCreateOptions) bool { return o.Config.Labels[docker.LabelKey] != "" }},
		{"what Docker's names may not have is replaced", func(r *engine.Create) { r.Spec.Name = "a b/c" },
			func(o client.ContainerCreateOptions) bool { return o.Name == "k8s_a-b-c_web_shop_uid_0" }},
		{"the pause container's namespaces are joined", func(*engine.Create) {}, func(o client.ContainerCreateOptions) bool {
			return o.HostConfig.NetworkMode == "container:sandbox-id" && o.HostConfig.IpcMode == "container:sandbox-id" && o.HostConfig.PidMode == ""
		}},
		{"a shared PID namespace is the pause container's", func(r *engine.Create) { r.Spec.Namespaces.PID = pod.NamespacePod },
			func(o client.ContainerCreateOptions) bool { return o.HostConfig.PidMode == "container:sandbox-id" }},
		{"no seccomp profile is none", func(*engine.Create) {}, secured("seccomp=unconfined")},
		{"a profile of the node is sent on one line", func(r *engine.Create) {
			r.Spec.Security.Seccomp = &pod.Profile{Kind: pod.ProfileLocalhost, Ref: profile}
		}, secured(`seccomp={"defaultAction":"SCMP_ACT_ALLOW"}`)},
		{"a privileged container is not confined by a profile", func(r *engine.Create) {
			r.Spec.Security.Privileged, r.Spec.Security.Seccomp = true, &pod.Profile{Kind: pod.ProfileRuntimeDefault}
		}, secured("seccomp=unconfined")},
		{"masked paths that are not named are none", func(*engine.Create) {},
			func(o client.ContainerCreateOptions) bool {
				return o.HostConfig.MaskedPaths != nil && len(o.HostConfig.MaskedPaths) == 0
			}},
		{"user and group", func(r *engine.Create) { r.Spec.Security.RunAsUser, r.Spec.Security.RunAsGroup = &uid, &gid },
			func(o client.ContainerCreateOptions) bool { return o.Config.User == "1000:2000" }},
		{"the client's /etc/hosts wins", func(r *engine.Create) {
			r.Spec.Mounts = []pod.Mount{{ContainerPath: "/etc/hosts", HostPath: profile}}
		}, func(o client.ContainerCreateOptions) bool {
			return source(o, "/etc/hosts") == profile && source(o, "/etc/resolv.conf") == "/pod/resolv.conf"
		}},
		{"the last of two mounts at one place wins", func(r *engine.Create) {
			r.Spec.Mounts = []pod.Mount{{ContainerPath: "/m", HostPath: "/"}, {ContainerPath: "/m/", HostPath: profile}}
		}, func(o client.ContainerCreateOptions) bool {
			return source(o, "/m/") == profile && source(o, "/m") == ""
		}},
		{"memory without a swap limit gets no swap", func(r *engine.Create) { r.Spec.Resources.MemoryLimit = 1 << 30 },
			func(o client.ContainerCreateOptions) bool { return o.HostConfig.MemorySwap == 1<<30 }},
		{"the image's health check is off", func(*engine.Create) {},
			func(o client.ContainerCreateOptions) bool {
				return slices.Equal(o.Config.Healthcheck.Test, []string{"NONE"})
			}},
	} {
		t.Run(c.rule, func(t *testing.T) {
			n, err := docker.NewNode(system.Info{CgroupDriver: "cgroupfs", SwapLimit: true}, "1.56")
			if err != nil {
				t.Fatal(err)
			}
			r := request()
			c.ask(r)
			o, err := n.Container(r)
			if err != nil {
				t.Fatal(err)
			}
			if !c.ok(o) {
				t.Errorf("asked for %+v with %+v", o.Config, o.HostConfig)
			}
		})
	}
}

func secured(option string) func(client.ContainerCreateOptions) bool {
	return func(o client.ContainerCreateOptions) bool { return slices.Contains(o.HostConfig.SecurityOpt, option) }
}

func source(o client.ContainerCreateOptions, target string) string {
	i := slices.IndexFunc(o.HostConfig.Mounts, func(m mount.Mount) bool { return m.Target == target })
	if i < 0 {
		return ""
	}
	return o.HostConfig.Mounts[i].Source
}

func TestDaemonThatIsTooOld(t *testing.T) {
	if _, err := docker.NewNode(system.Info{CgroupDriver: "cgroupfs"}, "1.39"); !errdefs.IsUnavailable(err) {
		t.Errorf("%v; want ErrUnavailable", err)
	}
}

func TestPauseProgram(t *testing.T) {
	for arch, machine := range map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64} {
		data, err := docker.PauseELF(arch)
		if err != nil {
			t.Fatal(err)
		}
		f, err := elf.NewFile(bytes.NewReader(data))
		if err != nil || f.Machine != machine || len(f.Progs) != 1 || f.Progs[0].Filesz != uint64(len(data)) {
			t.Errorf("%s: %+v, %v", arch, f, err)
		}
	}
	if _, err := docker.PauseELF("s390x"); !errdefs.IsNotImplemented(err) {
		t.Errorf("%v; want ErrNotImplemented", err)
	}
	data, err := docker.PauseELF(runtime.GOARCH)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "pause")
	if err = os.WriteFile(path, data, 0o755); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		// As the first process of a PID namespace: there only a handler makes a signal count.
		cmd := exec.CommandContext(t.Context(), path)
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		waitForHandler(t, cmd.Process.Pid, sig)
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("after %v: %v; want it to end with 0", sig, err)
		}
	}
}

// waitForHandler waits until a process catches a signal (SigCgt in proc_pid_status(5)).
func waitForHandler(t *testing.T, pid int, sig syscall.Signal) {
	t.Helper()
	for t.Context().Err() == nil {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(data), "SigCgt:\t")
		mask, err := strconv.ParseUint(strings.SplitN(rest, "\n", 2)[0], 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		if mask&(1<<(uint(sig)-1)) != 0 {
			return
		}
		runtime.Gosched()
	}
}
