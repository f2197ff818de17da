package image_test

import (
	"archive/tar"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"gantry/internal/image"
	"gantry/internal/image/tree"
	"gantry/internal/labimage"
)

// fragile is an image with one of everything that can be damaged.
func fragile(t *testing.T) v1.Image {
	t.Helper()
	noted := labimage.File("etc/noted", 0o640, "has an attribute")
	noted.PAXRecords = map[string]string{"SCHILY.xattr.user.note": "kept"}
	null := labimage.Entry{Header: tar.Header{Typeflag: tar.TypeChar, Name: "null", Mode: 0o666, Devmajor: 1, Devminor: 3, ModTime: labimage.Epoch}}
	return build(t, v1.Config{},
		[]labimage.Entry{
			labimage.Dir("./", 0o750), labimage.Dir("etc", 0o755), labimage.File("etc/app", 0o4755, noise(300_000)),
			labimage.Link("etc/link", "etc/app"), labimage.Symlink("etc/sym", "app"), noted, null,
			labimage.Dir("private", 0o700), labimage.File("gone", 0o644, "x"),
		},
		[]labimage.Entry{labimage.Whiteout("gone"), labimage.File("private/key", 0o600, "key"), labimage.File("top", 0o644, "top")})
}

// layerWith is the directory of the layer that has path.
func layerWith(t *testing.T, root, path string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(root, "layers", "*", path))
	if err != nil || len(found) == 0 {
		t.Fatalf("no layer has %s: %v", path, err)
	}
	return strings.TrimSuffix(found[0], "/"+path)
}

func verify(t *testing.T, s *image.Store, v image.Verify) []*image.Verified {
	t.Helper()
	var all []*image.Verified
	if err := s.Verify(t.Context(), v, func(f *image.Verified) { all = append(all, f) }); err != nil {
		t.Fatal(err)
	}
	return all
}

func wantWhole(t *testing.T, s *image.Store) {
	t.Helper()
	for _, v := range verify(t, s, image.Verify{}) {
		for _, l := range v.Layers {
			if l.Found > 0 {
				t.Errorf("layer %s still differs: %v", l.Name, l.Differences)
			}
		}
	}
}

func flip(t *testing.T, path string) {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, st.Size()/2); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b, st.Size()/2); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, st.ModTime(), st.ModTime()); err != nil {
		t.Fatal(err)
	}
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestDamageIsFoundAndMended(t *testing.T) {
	r := labimage.Registry(t, labimage.Config{})
	ref := push(t, r, "fragile:1", fragile(t))
	cases := map[string]struct {
		damage func(t *testing.T, path string)
		path   string
		kind   tree.Kind
		fetch  bool // the registry is needed
	}{
		"flipped byte":                {flip, "etc/app", tree.Content, true},
		"flipped byte in a variant":   {flip, "private/key", tree.Content, true},
		"truncated file":              {func(t *testing.T, p string) { must(t, os.Truncate(p, 5)) }, "etc/app", tree.Size, true},
		"file of zero bytes":          {func(t *testing.T, p string) { must(t, os.Truncate(p, 0)) }, "top", tree.Size, true},
		"missing file":                {func(t *testing.T, p string) { must(t, os.Remove(p)) }, "etc/app", tree.Missing, true},
		"missing directory":           {func(t *testing.T, p string) { must(t, os.RemoveAll(p)) }, "etc", tree.Missing, true},
		"directory instead of a file": {func(t *testing.T, p string) { must(t, os.Remove(p), os.MkdirAll(p+"/x", 0o755)) }, "etc/app", tree.Type, true},
		"link instead of a directory": {func(t *testing.T, p string) { must(t, os.RemoveAll(p), os.Symlink("/", p)) }, "etc", tree.Type, true},
		"added file":                  {func(t *testing.T, p string) { must(t, os.WriteFile(p, nil, 0o600)) }, "etc/added", tree.Added, false},
		"added directory":             {func(t *testing.T, p string) { must(t, os.MkdirAll(p+"/a/b", 0o700)) }, "etc/added", tree.Added, false},
		"changed mode":                {func(t *testing.T, p string) { must(t, os.Chmod(p, 0o777)) }, "etc/app", tree.Mode, false},
		"changed mode of the root":    {func(t *testing.T, p string) { must(t, os.Chmod(p, 0o777)) }, ".", tree.Mode, false},
		"changed owner":               {func(t *testing.T, p string) { must(t, os.Lchown(p, 1, 2)) }, "etc/sym", tree.Owner, false},
		"changed time":                {func(t *testing.T, p string) { must(t, os.Chtimes(p, time.Time{}, time.Unix(1, 2))) }, "etc", tree.Time, false},
		"changed attribute":           {func(t *testing.T, p string) { must(t, syscall.Setxattr(p, "user.note", []byte("x"), 0)) }, "etc/noted", tree.Attributes, false},
		"missing attribute":           {func(t *testing.T, p string) { must(t, syscall.Removexattr(p, "user.note")) }, "etc/noted", tree.Attributes, false},
		"changed link":                {func(t *testing.T, p string) { must(t, os.Remove(p), os.Symlink("x", p)) }, "etc/sym", tree.Target, false},
		"missing device":              {func(t *testing.T, p string) { must(t, os.Remove(p)) }, "null", tree.Missing, false},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			s := open(t, image.Options{Root: root})
			id := pull(t, s, ref)
			rootfs := prepare(t, s, "c", id)
			wantWhole(t, s)
			path := c.path
			if c.kind == tree.Added {
				path = "etc"
			}
			dir := layerWith(t, root, path)
			if c.path == "." {
				dir = layerWith(t, root, "etc")
			}
			c.damage(t, filepath.Join(dir, c.path))

			found := verify(t, s, image.Verify{Images: []string{ref}})
			if !slices.ContainsFunc(found[0].Layers, func(l image.VerifiedLayer) bool {
				return l.Name == filepath.Base(dir) && slices.Equal(l.Containers, []string{"c"}) &&
					slices.ContainsFunc(l.Differences, func(d tree.Difference) bool { return d.Path == c.path && d.Kind == c.kind })
			}) {
				t.Fatalf("%s of %s is not found in %+v", c.kind, c.path, found[0])
			}
			before := r.Requests(http.MethodGet, "/blobs/")
			if mended := verify(t, s, image.Verify{Repair: true}); !mended[0].Whole() || mended[0].Error != "" {
				t.Errorf("not mended: %+v", mended[0])
			}
			if fetched := r.Requests(http.MethodGet, "/blobs/") > before; fetched != c.fetch {
				t.Errorf("the registry was asked: %t", fetched)
			}
			wantWhole(t, s)
			if got := read(t, layerWith(t, root, "etc/link"), "etc/link"); got != noise(300_000) {
				t.Error("the hard link's content is not the file's")
			}
			if _, err := os.Stat(rootfs); err != nil {
				t.Errorf("the container lost its root: %v", err)
			}
			if marks, _ := os.ReadDir(filepath.Join(root, "damaged")); len(marks) > 0 {
				t.Errorf("mended layers are still marked: %v", marks)
			}
		})
	}
}

func TestDamagedImageHealsOnTheNextPull(t *testing.T) {
	r := labimage.Registry(t, labimage.Config{})
	ref := push(t, r, "fragile:1", fragile(t))
	for name, damage := range map[string]func(t *testing.T, s *image.Store, root string){
		"found by verify, after a restart": func(t *testing.T, s *image.Store, root string) {
			flip(t, filepath.Join(layerWith(t, root, "top"), "top"))
			if found := verify(t, s, image.Verify{}); found[0].Whole() {
				t.Error("the damage is not found")
			}
			must(t, s.Close())
		},
		"directory of a layer is gone": func(t *testing.T, _ *image.Store, root string) {
			must(t, os.RemoveAll(layerWith(t, root, "etc")))
		},
		"directory of a layer is gone before the start": func(t *testing.T, s *image.Store, root string) {
			must(t, s.Close(), os.RemoveAll(layerWith(t, root, "top")))
		},
		"record of a layer is gone": func(t *testing.T, s *image.Store, root string) {
			must(t, os.Remove(filepath.Join(root, "trees", filepath.Base(layerWith(t, root, "etc")))))
			verify(t, s, image.Verify{})
		},
		"record of a layer is damaged": func(t *testing.T, s *image.Store, root string) {
			flip(t, filepath.Join(root, "trees", filepath.Base(layerWith(t, root, "top"))))
			verify(t, s, image.Verify{})
		},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			s := open(t, image.Options{Root: root})
			pull(t, s, ref)
			damage(t, s, root)
			_ = s.Close()
			s = open(t, image.Options{Root: root})
			pull(t, s, ref)
			wantWhole(t, s)
			rootfs := prepare(t, s, "c", pull(t, s, ref))
			if read(t, rootfs, "top") != "top" || read(t, rootfs, "private/key") != "key" || read(t, rootfs, "etc/app") != noise(300_000) {
				t.Error("the image is not whole")
			}
			if st, err := os.Stat(filepath.Join(rootfs, "private")); err != nil || st.Mode().Perm() != 0o700 {
				t.Errorf("a directory that only the lower layer describes: %v, %v", st, err)
			}
			if marks, _ := os.ReadDir(filepath.Join(root, "damaged")); len(marks) > 0 {
				t.Errorf("still marked: %v", marks)
			}
		})
	}
}

func TestDamageThatNoRegistryMendsIsSaid(t *testing.T) {
	r := labimage.Registry(t, labimage.Config{})
	ref := push(t, r, "fragile:1", fragile(t))
	root := t.TempDir()
	s := open(t, image.Options{Root: root})
	pull(t, s, ref)
	flip(t, filepath.Join(layerWith(t, root, "etc/app"), "etc/app"))
	r.SetFault(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) bool {
		http.Error(w, "gone", http.StatusNotFound)
		return true
	})
	found := verify(t, s, image.Verify{Repair: true})
	if found[0].Whole() || !strings.Contains(found[0].Error, r.Host+"/fragile@sha256:") {
		t.Errorf("%+v", found[0])
	}
	r.SetFault(nil)
	pull(t, s, ref)
	wantWhole(t, s)
}
