package e2e_test

import (
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/labimage"
	"gantry/test/node"
)

// push pushes an image that was made, and returns its reference.
func push(t *testing.T, r *labimage.Server, name string) func(v1.Image, error) string {
	t.Helper()
	return func(img v1.Image, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		ref, err := r.Push(name, img)
		if err != nil {
			t.Fatal(err)
		}
		return ref
	}
}

// fails runs gantry's command line, which must exit with code, and returns what it printed.
func fails(t *testing.T, n *node.Node, code int, args ...string) string {
	t.Helper()
	out, err := n.GantryCommand(n.Context(), args...).CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != code {
		t.Errorf("gantry %s: %v, want exit code %d\n%s", strings.Join(args, " "), err, code, out)
	}
	return string(out)
}

func TestImagesAreExportedUntaggedAndImported(t *testing.T) {
	n := node.Start(t, node.Options{})
	r := labimage.Registry(t, labimage.Config{})
	app := push(t, r, "app:1")(labimage.Build(v1.Config{}, []labimage.Entry{labimage.File("f", 0o644, "f")}))
	art := push(t, r, "art:1")(labimage.Artifact(labimage.Blob{MediaType: "text/plain", Title: "card", Content: []byte("card")}))
	ids := strings.Fields(n.Gantry("pull", app, art))
	if len(ids) != 2 {
		t.Fatalf("pull printed %q, want two ids", ids)
	}
	file := filepath.Join(n.Root, "images.tar")
	n.Gantry("images", "export", "-o", file, app, art)
	n.Gantry("images", "untag", app)
	contains(t, "untag of a name that is not there", fails(t, n, 1, "images", "untag", app), "not found")
	if out := n.Gantry("inspect", ids[0]); strings.Contains(out, app) || !strings.Contains(out, ids[0]) {
		t.Errorf("after untag the image is to be there without the name:\n%s", out)
	}
	n.Gantry("rmi", ids[0], ids[1])
	contains(t, "rmi of an absent image", fails(t, n, 1, "rmi", app), "not found")
	r.Close() // what follows needs no registry
	if again := strings.Fields(n.Gantry("images", "import", file)); strings.Join(again, " ") != strings.Join(ids, " ") {
		t.Errorf("imported %v, exported %v", again, ids)
	}
	for _, ref := range []string{app, art} {
		contains(t, "inspect "+ref, n.Gantry("inspect", ref), ref)
	}
	contains(t, "the artifact's type", n.Gantry("inspect", art), labimage.ArtifactType)
	contains(t, "import of what is no image", fails(t, n, 1, "images", "import", n.Log), "read archive")
	contains(t, "export of an absent image", fails(t, n, 1, "images", "export", "-o", file, "absent:1"), "not found")
}

func TestDamagedImageIsFoundAndMended(t *testing.T) {
	n := node.Start(t, node.Options{})
	r := labimage.Registry(t, labimage.Config{})
	content := strings.Repeat("content ", 10_000)
	ref := push(t, r, "app:1")(labimage.Build(v1.Config{}, []labimage.Entry{labimage.File("a", 0o644, content), labimage.File("b", 0o644, "b")}))
	n.Gantry("pull", ref)
	contains(t, "verify", n.Gantry("images", "verify"), "whole")
	found, err := filepath.Glob(filepath.Join(n.Lib, "images", "layers", "*", "a"))
	if err != nil || len(found) != 1 {
		t.Fatalf("the layer's file: %v, %v", found, err)
	}
	if err = os.WriteFile(found[0], []byte(strings.Replace(content, "c", "C", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err = os.Remove(filepath.Join(filepath.Dir(found[0]), "b")); err != nil {
		t.Fatal(err)
	}
	out := fails(t, n, 1, "images", "verify", ref)
	contains(t, "verify", out, "damaged")
	contains(t, "verify", out, "a: content: checksum")
	contains(t, "verify", out, "b: missing")
	contains(t, "verify --repair", n.Gantry("images", "verify", "--repair"), "mended")
	contains(t, "verify after repair", n.Gantry("images", "verify"), "whole")
	if node.ReadFile(t, found[0]) != content {
		t.Error("the file is not what it was")
	}
}

func TestFsckRemovesWhatIsLeft(t *testing.T) {
	n := node.Start(t, node.Options{})
	warm(t, n)
	logs := filepath.Join(n.Logs, "lab_gone_uid-of-nobody")
	if err := os.MkdirAll(filepath.Join(logs, "main"), 0o755); err != nil {
		t.Fatal(err)
	}
	n.Stop()
	layer := filepath.Join(n.Lib, "images", "layers", "0123456789abcdef")
	if err := os.Mkdir(layer, 0o755); err != nil {
		t.Fatal(err)
	}
	args := []string{"fsck", "--root", n.Lib, "--state", n.State, "--logs", n.Logs, "--age", "0s"}
	out := fails(t, n, 1, args...)
	contains(t, "fsck", out, layer)
	contains(t, "fsck", out, logs)
	contains(t, "fsck --repair", n.Gantry(append(args, "--repair")...), "removed")
	for _, path := range []string{layer, logs} {
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", path, err)
		}
	}
	contains(t, "fsck after repair", n.Gantry(args...), "nothing is left")
	n.Restart()
	contains(t, "the image outlives it", n.Gantry("images"), "busybox")
}

func TestPullIsSeenWhileItRuns(t *testing.T) {
	n := node.Start(t, node.Options{})
	r := labimage.Registry(t, labimage.Config{})
	content := make([]byte, 4<<20)
	for i := range content {
		content[i] = byte(i * i >> 7)
	}
	layer, err := labimage.TarBlob(labimage.None, labimage.File("big", 0o644, string(content)))
	if err != nil {
		t.Fatal(err)
	}
	ref := push(t, r, "big:1")(labimage.Artifact(layer))
	open := make(chan struct{})
	r.SetFault(labimage.On(http.MethodGet, "/blobs/", labimage.Gate(open)))
	cmd := n.GantryCommand(n.Context(), "pull", ref)
	terminal := node.StartOnTerminal(t, cmd, 33, 100)
	const half = "2.1MB/4.2MB"
	shown := readUntil(t, terminal, half)
	contains(t, "the bar", shown, "=>")
	out := n.Gantry("images", "--pulling")
	contains(t, "images --pulling", out, ref)
	contains(t, "images --pulling", out, half)
	contains(t, "images --pulling -o json", n.Gantry("images", "--pulling", "-o", "json"), `"total"`)
	close(open)
	rest, _ := io.ReadAll(terminal) // EIO at the end
	if err = cmd.Wait(); err != nil {
		t.Errorf("pull: %v", err)
	}
	contains(t, "the id", string(rest), "sha256:")
	if out = n.Gantry("images", "--pulling"); strings.TrimSpace(out) != "" {
		t.Errorf("after the pull there is one still: %s", out)
	}
	contains(t, "the server's log", node.ReadFile(t, n.Log), "MBps")
}

// readUntil reads until what was read contains what.
func readUntil(t *testing.T, r io.Reader, what string) string {
	t.Helper()
	var all strings.Builder
	for buf := make([]byte, 4096); !strings.Contains(all.String(), what); {
		k, err := r.Read(buf)
		all.Write(buf[:k])
		if err != nil {
			t.Fatalf("%q was to come: %v after %q", what, err, all.String())
		}
	}
	return all.String()
}

func TestArtifactVolumes(t *testing.T) {
	r := labimage.Registry(t, labimage.Config{})
	tarred, err := labimage.TarBlob(labimage.Gzip, labimage.Dir("charts", 0o755), labimage.File("charts/app.yaml", 0o600, "kind: Chart\n"))
	if err != nil {
		t.Fatal(err)
	}
	art := push(t, r, "model:1")(labimage.Artifact(
		labimage.Blob{MediaType: "application/octet-stream", Title: "weights/model.bin", Content: []byte("weights")},
		labimage.Blob{MediaType: "text/markdown", Title: "README.md", Content: []byte("read me\n")}, tarred))
	for _, runtime := range []string{"crun", "runc"} {
		t.Run(runtime, func(t *testing.T) {
			n := node.Start(t, node.Options{Runtime: runtime})
			ref := warm(t, n)
			leavesNothing(t, n)
			id := n.Pull(art)
			s := n.Sandbox("volumes")
			c := node.Container("main", ref, "sleep", "100000")
			mount := func(at, sub string) *runtimeapi.Mount {
				return &runtimeapi.Mount{ContainerPath: at, Image: &runtimeapi.ImageSpec{Image: id}, ImageSubPath: sub, Readonly: true}
			}
			c.Mounts = []*runtimeapi.Mount{mount("/all", ""), mount("/weights", "weights"), mount("/app.yaml", "charts/app.yaml")}
			pod, container := n.Launch(s, c)
			got := n.Exec(container, "sh", "-c", `cat /all/README.md /all/weights/model.bin /weights/model.bin /app.yaml
				stat -c '%a %u %n' /all/README.md; touch /all/x 2>/dev/null || echo read-only`)
			if want := "read me\nweightsweightskind: Chart\n644 0 /all/README.md\nread-only\n"; got != want {
				t.Errorf("the container sees %q, want %q", got, want)
			}
			if _, err := n.Images.RemoveImage(n.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: art}}); err != nil {
				t.Errorf("remove while it is mounted: %v", err)
			}
			if got := n.Exec(container, "cat", "/all/README.md"); got != "read me\n" {
				t.Errorf("after the removal the file reads %q", got)
			}
			n.Pull(art)
			_, err := n.Runtime.CreateContainer(n.Context(), &runtimeapi.CreateContainerRequest{
				PodSandboxId: pod, Config: node.Container("art", id, "sh"), SandboxConfig: s,
			})
			if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), labimage.ArtifactType) {
				t.Errorf("an artifact as a container's image: %v", err)
			}
			n.RemovePod(pod)
			n.Gantry("rmi", art)
		})
	}
}
