package image_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"gantry/internal/image"
	"gantry/internal/lab"
	"gantry/internal/labimage"
	"gantry/internal/pod"
)

func TestMain(m *testing.M) { lab.Main(m) }

// open opens a store that ends with the test.
func open(t *testing.T, o image.Options) *image.Store {
	t.Helper()
	if o.Root == "" {
		o.Root = t.TempDir()
	}
	if o.Backoff == 0 {
		o.Backoff = time.Millisecond
	}
	s, err := image.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func push(t *testing.T, r *labimage.Server, name string, img v1.Image) string {
	t.Helper()
	ref, err := r.Push(name, img)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func build(t *testing.T, config v1.Config, layers ...[]labimage.Entry) v1.Image {
	t.Helper()
	img, err := labimage.Build(config, layers...)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func pull(t *testing.T, s *image.Store, ref string) string {
	t.Helper()
	id, err := s.Pull(t.Context(), &pod.Pull{Ref: ref})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// prepare mounts the image and releases it when the test ends.
func prepare(t *testing.T, s *image.Store, key, id string) string {
	t.Helper()
	root, err := s.Prepare(t.Context(), image.Mount{Key: key, Image: id})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Release(context.Background(), key) })
	return root
}

func read(t *testing.T, path ...string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// left are the layers, containers and half-made things below root.
func left(t *testing.T, root string) []string {
	t.Helper()
	var all []string
	for _, d := range []string{"layers", "containers", "staging", "images"} {
		entries, err := os.ReadDir(filepath.Join(root, d))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			all = append(all, d+"/"+e.Name())
		}
	}
	return all
}

func wantNothingLeft(t *testing.T, root string) {
	t.Helper()
	if l := left(t, root); len(l) > 0 {
		t.Errorf("left behind: %v", l)
	}
}

func TestPulledImageRunsFromItsRootfs(t *testing.T) {
	r := labimage.Registry(t, labimage.Config{})
	img, err := labimage.Busybox(func(c *v1.Config) { c.User = "gantry"; c.Entrypoint = []string{"/bin/sh"} })
	if err != nil {
		t.Fatal(err)
	}
	ref := push(t, r, "busybox:1", img)
	root := t.TempDir()
	s := open(t, image.Options{Root: root})
	id := pull(t, s, ref)
	want, _ := img.ConfigName()
	if id != want.String() {
		t.Errorf("id %s, want the config digest %s", id, want)
	}
	got, err := s.Get(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	if got.User != "gantry" || got.Config.Entrypoint[0] != "/bin/sh" || got.Labels["gantry.lab"] != "busybox" {
		t.Errorf("config is not the image's: %+v", got)
	}
	manifest, _ := img.Digest()
	if want := r.Host + "/busybox@" + manifest.String(); len(got.Digests) != 1 || got.Digests[0] != want {
		t.Errorf("digests %v, want %s", got.Digests, want)
	}
	if len(got.Tags) != 1 || got.Tags[0] != ref {
		t.Errorf("tags %v, want %s", got.Tags, ref)
	}

	rootfs := prepare(t, s, "c1", id)
	if !strings.Contains(read(t, rootfs, "etc/passwd"), "gantry:x:1000") {
		t.Error("passwd is not the image's")
	}
	if err = os.WriteFile(filepath.Join(rootfs, "etc/passwd"), []byte("changed"), 0o600); err != nil {
		t.Fatal(err)
	}
	again, err := s.Prepare(t.Context(), image.Mount{Key: "c1", Image: id})
	if err != nil || again != rootfs || read(t, rootfs, "etc/passwd") != "changed" {
		t.Errorf("a second Prepare gave %q, %v and did not keep what was mounted", again, err)
	}
	if other := prepare(t, s, "c2", id); read(t, other, "etc/passwd") == "changed" {
		t.Error("containers share what one wrote")
	}
	for range 2 {
		for _, key := range []string{"c1", "c2"} {
			if err := s.Release(t.Context(), key); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 2 {
		if err := s.Remove(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	wantNothingLeft(t, root)
}

func TestImageRemovedWhileAContainerUsesIt(t *testing.T) {
	r := labimage.Registry(t, labimage.Config{})
	ref := push(t, r, "app:1", build(t, v1.Config{}, []labimage.Entry{labimage.File("hello", 0o644, "hello")}))
	root := t.TempDir()
	s := open(t, image.Options{Root: root})
	rootfs := prepare(t, s, "c", pull(t, s, ref))
	if err := s.Remove(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(t.Context(), ref); !errdefs.IsNotFound(err) {
		t.Errorf("the image is still there: %v", err)
	}
	if got := read(t, rootfs, "hello"); got != "hello" {
		t.Errorf("the container lost its file system: %q", got)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, image.Options{Root: root})
	if keys, err := s.Prepared(t.Context()); err != nil || len(keys) != 1 || keys[0] != "c" {
		t.Errorf("after a restart prepared are %v, %v", keys, err)
	}
	if got := read(t, rootfs, "hello"); got != "hello" {
		t.Errorf("the restart took the container's file system: %q", got)
	}
	if err := s.Release(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	wantNothingLeft(t, root)
}

func TestFindingAnImage(t *testing.T) {
	r := labimage.Registry(t, labimage.Config{})
	img := build(t, v1.Config{}, []labimage.Entry{labimage.File("a", 0o644, "a")})
	ref := push(t, r, "team/app:1.2", img)
	s := open(t, image.Options{Pinned: []string{ref}})
	id := pull(t, s, ref)
	digest, _ := img.Digest()
	for name, ref := range map[string]string{
		"id":                    id,
		"id without algorithm":  strings.TrimPrefix(id, "sha256:"),
		"beginning of the id":   id[len("sha256:") : len("sha256:")+12],
		"tag":                   ref,
		"digest":                r.Host + "/team/app@" + digest.String(),
		"tag with digest":       ref + "@" + digest.String(),
		"beginning with sha256": id[:20],
	} {
		if got, err := s.Get(t.Context(), ref); err != nil || got.ID != id || !got.Pinned {
			t.Errorf("%s %q: %+v, %v", name, ref, got, err)
		}
	}
	for name, c := range map[string]struct {
		ref  string
		want func(error) bool
	}{
		"other tag is absent":         {r.Host + "/team/app:2", errdefs.IsNotFound},
		"other id is absent":          {strings.Repeat("0", 64), errdefs.IsNotFound},
		"upper case is malformed":     {"Bad/Name", errdefs.IsInvalidArgument},
		"empty is malformed":          {"", errdefs.IsInvalidArgument},
		"short digest is malformed":   {"a@sha256:12", errdefs.IsInvalidArgument},
		"unknown name is absent":      {"busybox", errdefs.IsNotFound},
		"two tags are malformed":      {"a:b:c", errdefs.IsInvalidArgument},
		"white space is malformed":    {"a b", errdefs.IsInvalidArgument},
		"unknown digest is malformed": {"a@md5:0123456789abcdef0123456789abcdef", errdefs.IsInvalidArgument},
	} {
		if _, err := s.Get(t.Context(), c.ref); !c.want(err) {
			t.Errorf("%s: Get(%q) = %v", name, c.ref, err)
		}
	}
}
