package faults_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/test/node"
)

// What other users of the node may read is what any container shows anyway: the files of /etc that its
// pod shares. They can connect to no socket.
func TestOtherUsersGetNothing(t *testing.T) {
	w := newWorld(t, "builtin")
	w.reset(t)
	running(w)
	public := []string{"resolv.conf", "hosts", "hostname"}
	for _, dir := range []string{w.n.State, w.n.Lib} {
		for _, what := range []string{"-readable -type f", "-writable -not -type l", "-type s -writable"} {
			for path := range strings.Lines(asNobody(t, dir, what)) {
				path = strings.TrimSpace(path)
				if !slices.Contains(public, filepath.Base(path)) {
					t.Errorf("nobody finds with %s: %s", what, path)
				}
			}
		}
	}
	for path, mode := range map[string]os.FileMode{"gantry.sock": 0o660, "admin.sock": 0o600, "keeper/keeper.sock": 0o600} {
		info, err := os.Stat(filepath.Join(w.n.State, path))
		if err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v, want mode %v", path, info.Mode(), err, mode)
		}
	}
	w.removeAll()
}

// asNobody lists what a user without any privilege finds below dir. The directories above it belong to
// the test and are opened for it.
func asNobody(t *testing.T, dir, what string) string {
	t.Helper()
	for d := filepath.Dir(dir); d != "/"; d = filepath.Dir(d) {
		info, err := os.Stat(d)
		if err != nil {
			t.Fatal(err)
		}
		if err = os.Chmod(d, info.Mode()|0o111); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("find", append([]string{dir, "-mount"}, strings.Fields(what)...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, _ := cmd.Output() // what may not be entered is an error of find's
	return string(out)
}

// A container that has its pod's log directory mounted puts a link where the log's directory was. The
// log is not opened behind it, and its output waits for a log that is one.
func TestLogIsNotOpenedBehindALink(t *testing.T) {
	w := newWorld(t, "builtin")
	w.reset(t)
	target := t.TempDir()
	w.config.LogPath = "main/0.log"
	w.config.Mounts = []*runtimeapi.Mount{{HostPath: w.sandbox.LogDirectory, ContainerPath: "/logs"}}
	withPod(w)
	w.container = w.n.Create(w.pod, w.config, w.sandbox)
	w.n.StartContainer(w.container)
	w.n.Eventually("the container has logged", func() bool { return len(w.logged()) > 0 })
	w.n.Exec(w.container, "sh", "-c", "mv /logs/main /logs/was && ln -s "+target+" /logs/main")
	err := w.reopen()
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("ReopenContainerLog behind a link: %v", err)
	}
	second := node.Container("second", w.image, "true")
	second.LogPath = "main/second.log"
	_, err = w.n.Runtime.CreateContainer(w.n.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: w.pod, Config: second, SandboxConfig: w.sandbox})
	if err == nil {
		t.Error("a container was created whose log is behind a link")
	}
	if left, _ := os.ReadDir(target); len(left) > 0 {
		t.Errorf("written behind the link: %v", left)
	}
	w.removeAll()
	w.nothingIsLeft()
}

// Names are the client's, and are no paths.
func TestNamesAreNoPaths(t *testing.T) {
	w := newWorld(t, "builtin")
	for _, name := range []string{"../../../../tmp/evil", "/etc/evil", "..", "a/../../b", "evil\x00", "evil\n"} {
		t.Run(name, func(t *testing.T) {
			w.reset(t)
			w.sandbox.Metadata.Name, w.sandbox.Metadata.Namespace, w.sandbox.Metadata.Uid = name, name, name
			w.sandbox.Labels = map[string]string{name: name}
			w.config.Metadata.Name, w.config.Labels = name, map[string]string{name: name}
			w.config.LogPath = name + ".log"
			r, err := w.n.Runtime.RunPodSandbox(w.n.Context(), &runtimeapi.RunPodSandboxRequest{Config: w.sandbox})
			if err == nil {
				_, err = w.n.Runtime.CreateContainer(w.n.Context(), &runtimeapi.CreateContainerRequest{
					PodSandboxId: r.PodSandboxId, Config: w.config, SandboxConfig: w.sandbox,
				})
			}
			if code := status.Code(err); err != nil && code != codes.InvalidArgument {
				t.Errorf("it is refused with %v", err)
			}
			for _, path := range []string{"/tmp/evil", "/tmp/evil.log", "/etc/evil", "/etc/evil.log"} {
				if _, err := os.Lstat(path); err == nil {
					t.Errorf("%s was made", path)
				}
			}
			w.removeAll()
			w.nothingIsLeft()
		})
	}
}

// What the kernel takes of a command and an environment runs; what it does not is refused with its reason.
func TestSizesOfCommandAndEnvironment(t *testing.T) {
	w := newWorld(t, "builtin")
	const word = 128<<10 - 1 // the longest that execve(2) takes, with its final zero
	for _, tc := range []struct {
		name  string
		words int
		size  int
		runs  bool
	}{
		{"a word at the limit", 1, word - 1, true},
		{"a word beyond the limit", 1, word + 1, false},
		{"a megabyte of words", 10, 100 << 10, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w.reset(t)
			withPod(w)
			w.config.Command = []string{"sh", "-c", "echo $#; env | wc -c", "sh"}
			for range tc.words {
				w.config.Command = append(w.config.Command, strings.Repeat("x", tc.size))
			}
			err := w.create()
			if err == nil {
				err = w.start()
			}
			if runs := err == nil && w.n.Ended(w.container).ExitCode == 0; runs != tc.runs {
				t.Errorf("it runs: %v, %.300v", runs, err)
			}
			w.removeAll()
			w.nothingIsLeft()
		})
	}
}
