package checkpoint_test

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"gantry/internal/checkpoint"
)

// captured is a directory with what an engine and lifecycle write.
func captured(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "captured")
	if err := os.MkdirAll(filepath.Join(dir, checkpoint.ImagesDir), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		checkpoint.SpecFile: `{"process":{"args":["app"]}}`, checkpoint.RootfsDiff: "diff", "checkpoint/pages-1.img": strings.Repeat("p", 1<<20),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := checkpoint.Describe(dir, &checkpoint.Container{
		ID: "id", Name: "main", Image: "example.org/app:1", ImageID: "sha256:abc", Runtime: "runc",
		CreatedAt: time.Unix(1, 0), At: time.Unix(3, 0), StartedAt: time.Unix(2, 0), Pid: 7, Status: map[string]string{"state": "running"},
	}); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestPackedCheckpointUnpacksAsItWas(t *testing.T) {
	from := captured(t)
	if err := unix.Mkfifo(filepath.Join(from, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(from, "link")); err != nil {
		t.Fatal(err)
	}
	if err := checkpoint.WriteDeleted(from, []string{"etc/passwd"}); err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(t.TempDir(), "a.tar")
	if err := checkpoint.Pack(t.Context(), from, archive); err != nil {
		t.Fatal(err)
	}
	c, err := checkpoint.Inspect(t.Context(), archive)
	if err != nil || c.Name != "main" || c.Image != "example.org/app:1" || c.ImageID != "sha256:abc" || !c.At.Equal(time.Unix(3, 0)) {
		t.Errorf("inspect: %+v, %v", c, err)
	}
	to, copied := filepath.Join(t.TempDir(), "to"), filepath.Join(t.TempDir(), "copied")
	if err = checkpoint.Unpack(t.Context(), archive, to); err != nil {
		t.Fatal(err)
	}
	if err = checkpoint.Copy(t.Context(), to, copied); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{to, copied} {
		if c, err := checkpoint.Describes(dir); err != nil || c.ID != "id" {
			t.Errorf("%s describes %+v, %v", dir, c, err)
		}
		if d, err := checkpoint.Deleted(dir); err != nil || len(d) != 1 {
			t.Errorf("%s deleted %v, %v", dir, d, err)
		}
		var spec struct{ Process struct{ Args []string } }
		if err := checkpoint.Spec(dir, &spec); err != nil || spec.Process.Args[0] != "app" {
			t.Errorf("spec of %s: %+v, %v", dir, spec, err)
		}
		for _, name := range []string{"fifo", "link"} {
			if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
				t.Errorf("%s has come along to %s", name, dir)
			}
		}
	}
}

func TestCancelledPackLeavesNothing(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	archive := filepath.Join(t.TempDir(), "a.tar")
	if err := checkpoint.Pack(ctx, captured(t), archive); err == nil {
		t.Error("it was packed")
	}
	if _, err := os.Lstat(archive); err == nil {
		t.Error("the archive is there")
	}
}

func TestCompressedArchiveIsRead(t *testing.T) {
	plain := filepath.Join(t.TempDir(), "a.tar")
	if err := checkpoint.Pack(t.Context(), captured(t), plain); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(plain)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(plain + ".gz")
	if err != nil {
		t.Fatal(err)
	}
	z := gzip.NewWriter(f)
	if _, err = z.Write(data); err != nil || z.Close() != nil || f.Close() != nil {
		t.Fatal(err)
	}
	if c, err := checkpoint.Inspect(t.Context(), plain+".gz"); err != nil || c.ID != "id" {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestHostileArchivesAreRefused(t *testing.T) {
	for rule, entries := range map[string][]tar.Header{
		"a name that leads out":    {{Name: "../../etc/passwd", Typeflag: tar.TypeReg}},
		"an absolute name":         {{Name: "/etc/passwd", Typeflag: tar.TypeReg}},
		"a symbolic link":          {{Name: "checkpoint", Typeflag: tar.TypeSymlink, Linkname: "/etc"}, {Name: "checkpoint/passwd", Typeflag: tar.TypeReg}},
		"a device":                 {{Name: "checkpoint/null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}},
		"a file twice":             {{Name: "config.dump", Typeflag: tar.TypeReg}, {Name: "./config.dump", Typeflag: tar.TypeReg}},
		"a FIFO for the spec":      {{Name: "spec.dump", Typeflag: tar.TypeFifo}},
		"a hard link to elsewhere": {{Name: "spec.dump", Typeflag: tar.TypeLink, Linkname: "/etc/passwd"}},
	} {
		t.Run(rule, func(t *testing.T) {
			parent := t.TempDir()
			archive := filepath.Join(parent, "a.tar")
			f, err := os.Create(archive)
			if err != nil {
				t.Fatal(err)
			}
			w := tar.NewWriter(f)
			for i := range entries {
				if err := w.WriteHeader(&entries[i]); err != nil {
					t.Fatal(err)
				}
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			if err := checkpoint.Unpack(t.Context(), archive, filepath.Join(parent, "to")); !errdefs.IsInvalidArgument(err) {
				t.Errorf("unpacked: %v, want ErrInvalidArgument", err)
			}
			if _, err := checkpoint.Inspect(t.Context(), archive); !errdefs.IsInvalidArgument(err) {
				t.Errorf("inspected: %v, want ErrInvalidArgument", err)
			}
		})
	}
}

func TestDirectoriesThatAreNoCheckpoint(t *testing.T) {
	for rule, spoil := range map[string]func(dir string) error{
		"without config.dump": func(dir string) error { return os.Remove(filepath.Join(dir, checkpoint.ConfigFile)) },
		"without processes":   func(dir string) error { return os.RemoveAll(filepath.Join(dir, checkpoint.ImagesDir)) },
		"whose config.dump is no JSON": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, checkpoint.ConfigFile), []byte("{"), 0o600)
		},
		"whose config.dump has nothing": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, checkpoint.ConfigFile), []byte("{}"), 0o600)
		},
		"whose spec.dump is a link": func(dir string) error {
			path := filepath.Join(dir, checkpoint.SpecFile)
			return errors.Join(os.Remove(path), os.Symlink("/etc/passwd", path))
		},
	} {
		t.Run(rule, func(t *testing.T) {
			dir := captured(t)
			if err := spoil(dir); err != nil {
				t.Fatal(err)
			}
			if _, err := checkpoint.Describes(dir); !errdefs.IsInvalidArgument(err) {
				t.Errorf("%v, want ErrInvalidArgument", err)
			}
		})
	}
}

func TestPodCheckpointNamesFilesBelowIt(t *testing.T) {
	for file, good := range map[string]bool{"main.tar": true, "../main.tar": false, "/main.tar": false, "": false, "a/b.tar": false} {
		dir := t.TempDir()
		if err := checkpoint.DescribePod(dir, &checkpoint.Pod{Archives: map[string]string{"main": file}, Name: "web"}); err != nil {
			t.Fatal(err)
		}
		p, err := checkpoint.DescribesPod(dir)
		if good && (err != nil || p.Name != "web" || p.Archives["main"] != file) || !good && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %+v, %v", file, p, err)
		}
	}
	if _, err := checkpoint.DescribesPod(t.TempDir()); !errdefs.IsInvalidArgument(err) {
		t.Errorf("an empty directory: %v, want ErrInvalidArgument", err)
	}
}

func TestImagesMadeOfCheckpoints(t *testing.T) {
	for annotation, want := range map[string]bool{
		"io.kubernetes.cri-o.annotations.checkpoint.name": true, "org.criu.checkpoint.container.name": true, "maintainer": false,
	} {
		if got := checkpoint.IsImage(map[string]string{annotation: "main"}); got != want {
			t.Errorf("%s: %t, want %t", annotation, got, want)
		}
	}
}

func FuzzInspect(f *testing.F) {
	f.Add([]byte("no tar"))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "a")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if c, err := checkpoint.Inspect(context.Background(), path); err == nil && c.Image == "" && c.ImageID == "" {
			t.Error("a checkpoint of no image")
		}
	})
}
