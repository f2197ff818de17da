package e2e_test

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	metadata "github.com/checkpoint-restore/checkpointctl/lib"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/test/node"
)

// counting writes a number a line for as long as it runs.
const counting = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.02; done"

func checkpoint(n *node.Node, id, location string, limit int64) error {
	_, err := n.Runtime.CheckpointContainer(n.Context(), &runtimeapi.CheckpointContainerRequest{ContainerId: id, Location: location, Timeout: limit})
	return err
}

// runsOn waits for more output than there is now.
func runsOn(n *node.Node, id string) {
	n.T().Helper()
	had := len(n.ReadLog(id))
	n.Eventually("the container writes on", func() bool { return len(n.ReadLog(id)) > had })
}

func TestCheckpointIsRefusedWhereItCannotBe(t *testing.T) {
	for runtime, missing := range map[string]string{"crun": "CRIU", "runc": "criu"} {
		t.Run(runtime, func(t *testing.T) {
			t.Setenv("PATH", withoutCRIU(t))
			n := node.Start(t, node.Options{Runtime: runtime})
			ref := warm(t, n)
			leavesNothing(t, n)
			pod, id := n.Launch(n.Sandbox("web"), node.Container("main", ref, "sh", "-c", counting))
			defer n.RemovePod(pod)
			dir := t.TempDir()
			err := checkpoint(n, id, filepath.Join(dir, "a.tar"), 60)
			if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), missing) {
				t.Errorf("%v; want FailedPrecondition that names %s", err, missing)
			}
			_, err = n.Runtime.CheckpointPod(n.Context(), &runtimeapi.CheckpointPodRequest{PodSandboxId: pod, OutputPath: dir, ContainerIds: []string{id}})
			if status.Code(err) != codes.FailedPrecondition {
				t.Errorf("CheckpointPod: %v; want FailedPrecondition", err)
			}
			if left, _ := filepath.Glob(dir + "/*"); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
			runsOn(n, id)
		})
	}
}

// withoutCRIU is a PATH on which there is a runc and no criu.
func withoutCRIU(t *testing.T) string {
	t.Helper()
	var dirs []string
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		if _, err := os.Stat(filepath.Join(dir, "criu")); err != nil {
			dirs = append(dirs, dir)
		}
	}
	return strings.Join(dirs, ":")
}

// The archive is what checkpointctl reads; a container made of it has the files that the first had
// changed. The processes are played: CRIU does not work on every kernel that tests run on.
func TestCheckpointedContainerIsRestored(t *testing.T) {
	crun, _ := node.PlayCRIU(t)
	n := node.Start(t, node.Options{Runtime: "played", Flags: []string{"--runtime", "played=" + crun}})
	ref := warm(t, n)
	leavesNothing(t, n)
	sandbox := n.Sandbox("web")
	pod, id := n.Launch(sandbox, node.Container("main", ref, "sh", "-c", counting))
	defer n.RemovePod(pod)
	n.Exec(id, "sh", "-c", "echo changed >/etc/changed; rm /etc/passwd; mkdir -m 700 /etc/own; ln -s changed /etc/link")
	archive := filepath.Join(t.TempDir(), "main.tar")
	if err := checkpoint(n, id, archive, 60); err != nil {
		t.Fatal(err)
	}
	runsOn(n, id)
	checkArchive(t, n, archive, id)

	config := node.Container("copy", archive, "sh", "-c", "not what was checkpointed")
	copied := n.Create(pod, config, sandbox)
	s := n.Container(copied)
	if s.State != runtimeapi.ContainerState_CONTAINER_CREATED || s.ImageRef != n.Container(id).ImageRef {
		t.Errorf("the copy is %v of image %s", s.State, s.ImageRef)
	}
	if log := n.ReadLog(copied); log != "" {
		t.Errorf("it has run before it was started: %q", log)
	}
	n.StartContainer(copied)
	runsOn(n, copied)
	got := n.Exec(copied, "sh", "-c", "cat /etc/link; stat -c %a /etc/own; test -e /etc/passwd || echo gone")
	if got != "changed\n700\ngone\n" {
		t.Errorf("the copy's files say %q", got)
	}
	n.Kill()
	n.Restart()
	if s := n.Container(copied); s.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("after a restart of the server the copy is %v", s.State)
	}
	n.StopContainer(copied, 0)
	if s := n.Container(copied); s.ExitCode != 137 {
		t.Errorf("the copy ended with %d", s.ExitCode)
	}
}

// checkArchive reads an archive as checkpointctl does.
func checkArchive(t *testing.T, n *node.Node, archive, id string) {
	t.Helper()
	dir := t.TempDir()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the archive has mode %v, %v: others may read the memory of processes", st.Mode(), err)
	}
	var names []string
	for tr := tar.NewReader(f); ; {
		hdr, nextErr := tr.Next()
		if errors.Is(nextErr, io.EOF) {
			break
		}
		if nextErr != nil {
			t.Fatal(nextErr)
		}
		names = append(names, hdr.Name)
		if data, readErr := io.ReadAll(tr); readErr != nil || !strings.Contains(hdr.Name, "/") && os.WriteFile(filepath.Join(dir, hdr.Name), data, 0o600) != nil {
			t.Fatal(hdr.Name, readErr)
		}
	}
	slices.Sort(names)
	want := "checkpoint/ checkpoint/core-1.img checkpoint/pages-1.img config.dump container.log deleted.files dump.log rootfs-diff.tar spec.dump status status.dump"
	if got := strings.Join(names, " "); got != want {
		t.Errorf("the archive has\n%s, want\n%s", got, want)
	}
	config, _, err := metadata.ReadContainerCheckpointConfigDump(dir)
	if err != nil || config.ID != id || config.RootfsImageRef != n.Container(id).ImageRef || config.CheckpointedAt.IsZero() {
		t.Errorf("config.dump says %+v, %v", config, err)
	}
	spec, _, err := metadata.ReadContainerCheckpointSpecDump(dir)
	if err != nil || spec.Process == nil || spec.Annotations["io.kubernetes.cri.sandbox-name"] != "web" {
		t.Errorf("spec.dump: %v", err)
	}
	if deleted, _, err := metadata.ReadContainerCheckpointDeletedFiles(dir); err != nil || !slices.Equal(deleted, []string{"etc/passwd"}) {
		t.Errorf("deleted.files says %v, %v", deleted, err)
	}
	if s, _, err := metadata.ReadContainerCheckpointStatusFile(dir); err != nil || s.StartedAt != n.Container(id).StartedAt {
		t.Errorf("status says %+v, %v", s, err)
	}
}

// Whatever goes wrong in the runtime, the container runs on and no file is left.
func TestCheckpointThatFailsInTheRuntime(t *testing.T) {
	crun, fault := node.PlayCRIU(t)
	n := node.Start(t, node.Options{Runtime: "played", Flags: []string{"--runtime", "played=" + crun}})
	ref := warm(t, n)
	leavesNothing(t, n)
	sandbox := n.Sandbox("web")
	pod, id := n.Launch(sandbox, node.Container("main", ref, "sh", "-c", counting))
	defer n.RemovePod(pod)
	for mode, want := range map[string]codes.Code{"fail": codes.Unknown, "hang": codes.DeadlineExceeded, "die": codes.Unknown} {
		t.Run(mode, func(t *testing.T) {
			n := n.For(t)
			dir := t.TempDir()
			breaks(t, fault, "checkpoint "+mode)
			limit := int64(60)
			if mode == "hang" { // the others answer in time, however slow the machine is
				limit = 2
			}
			err := checkpoint(n, id, filepath.Join(dir, "main.tar"), limit)
			if status.Code(err) != want {
				t.Errorf("%v; want %v", err, want)
			}
			if mode == "fail" && !strings.Contains(err.Error(), "criu/cr-dump.c:1") {
				t.Errorf("%v does not say what CRIU said", err)
			}
			if left, _ := os.ReadDir(dir); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
			runsOn(n, id)
		})
	}
	for _, mode := range []string{"fail", "die"} {
		t.Run("restore "+mode, func(t *testing.T) {
			n := n.For(t)
			breaks(t, fault, "restore "+mode)
			archive := filepath.Join(t.TempDir(), "main.tar")
			if err := checkpoint(n, id, archive, 60); err != nil {
				t.Fatal(err)
			}
			copied := n.Create(pod, node.Container("copy-"+mode, archive), sandbox)
			if _, err := n.Runtime.StartContainer(n.Context(), &runtimeapi.StartContainerRequest{ContainerId: copied}); err == nil {
				t.Error("it was started")
			} else if mode == "fail" && !strings.Contains(err.Error(), "criu/cr-dump.c:1") {
				t.Errorf("%v does not say what CRIU said", err)
			}
			if mode == "fail" {
				if s := n.Container(copied); s.Reason != "StartError" {
					t.Errorf("the container is %v, %s", s.State, s.Reason)
				}
			}
			if _, err := n.Runtime.RemoveContainer(n.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: copied}); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("restore without an answer", func(t *testing.T) {
		n := n.For(t)
		breaks(t, fault, "restore mute")
		archive := filepath.Join(t.TempDir(), "main.tar")
		if err := checkpoint(n, id, archive, 60); err != nil {
			t.Fatal(err)
		}
		copied := n.Create(pod, node.Container("copy-mute", archive), sandbox)
		n.StartContainer(copied)
		runsOn(n, copied)
		if log := n.ReadLog(copied); strings.Count(log, " 0\n") != 1 {
			t.Errorf("it was not restored once: %q", log)
		}
	})
}

func breaks(t *testing.T, fault, what string) {
	t.Helper()
	if err := os.WriteFile(fault, []byte(what+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(fault) })
}

func TestCheckpointedPodIsRestored(t *testing.T) {
	crun, _ := node.PlayCRIU(t)
	n := node.Start(t, node.Options{Runtime: "played", Flags: []string{"--runtime", "played=" + crun}})
	ref := warm(t, n)
	leavesNothing(t, n)
	sandbox := n.Sandbox("web")
	pod, one := n.Launch(sandbox, node.Container("one", ref, "sh", "-c", counting))
	two := n.Create(pod, node.Container("two", ref, "sh", "-c", counting), sandbox)
	n.StartContainer(two)
	dir := t.TempDir()
	_, err := n.Runtime.CheckpointPod(n.Context(), &runtimeapi.CheckpointPodRequest{PodSandboxId: pod, OutputPath: dir, ContainerIds: []string{one, two}})
	if err != nil {
		t.Fatal(err)
	}
	runsOn(n, one)
	runsOn(n, two)
	n.RemovePod(pod)
	again := n.Sandbox("again")
	configs := []*runtimeapi.ContainerConfig{node.Container("two", ref, "sh", "-c", counting), node.Container("one", ref, "sh", "-c", counting)}
	restored, err := n.Runtime.RestorePod(n.Context(), &runtimeapi.RestorePodRequest{CheckpointPath: dir, Config: again, ContainerConfigs: configs})
	if err != nil {
		t.Fatal(err)
	}
	defer n.RemovePod(restored.PodSandboxId)
	for i, name := range []string{"one", "two"} {
		c := restored.RestoredContainers[i]
		if s := n.Container(c.ContainerId); c.Name != name || s.State != runtimeapi.ContainerState_CONTAINER_CREATED || s.Metadata.Name != name {
			t.Errorf("container %d is %s, %v", i, c.Name, s.State)
		}
		n.StartContainer(c.ContainerId)
		runsOn(n, c.ContainerId)
	}
	other := node.Container("one", ref, "sh", "-c", "exit 1")
	_, err = n.Runtime.RestorePod(n.Context(), &runtimeapi.RestorePodRequest{
		CheckpointPath: dir, Config: n.Sandbox("other"), ContainerConfigs: []*runtimeapi.ContainerConfig{other, configs[0]},
	})
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "command") {
		t.Errorf("another command than was checkpointed: %v; want InvalidArgument that names it", err)
	}
	pods, err := n.Runtime.ListPodSandbox(n.Context(), &runtimeapi.ListPodSandboxRequest{})
	if err != nil || len(pods.Items) != 1 {
		t.Errorf("%d pods are listed, %v; want the restored one", len(pods.GetItems()), err)
	}
}
