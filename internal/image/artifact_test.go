package image_test

import (
	"bytes"
	"context"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"gantry/internal/image"
	"gantry/internal/labimage"
	"gantry/internal/pod"
)

const plainText = "text/plain"

func artifact(t *testing.T, blobs ...labimage.Blob) v1.Image {
	t.Helper()
	img, err := labimage.Artifact(blobs...)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func text(title, content string) labimage.Blob {
	return labimage.Blob{MediaType: plainText, Title: title, Content: []byte(content)}
}

func tarBlob(t *testing.T, c labimage.Compression, entries ...labimage.Entry) labimage.Blob {
	t.Helper()
	b, err := labimage.TarBlob(c, entries...)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// mountVolume mounts an image as a volume and releases it when the test ends.
func mountVolume(t *testing.T, s *image.Store, key, ref string) string {
	t.Helper()
	path, err := s.Prepare(t.Context(), image.Mount{Key: key, Image: ref, Volume: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Release(context.Background(), key) })
	return path
}

// files are the regular files below root and what they hold.
func files(t *testing.T, root string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			rel, _ := filepath.Rel(root, path)
			all[rel] = read(t, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func wantFiles(t *testing.T, root string, want map[string]string) {
	t.Helper()
	have := files(t, root)
	for name, content := range want {
		if have[name] != content {
			t.Errorf("%s is %.40q, want %.40q", name, have[name], content)
		}
		delete(have, name)
	}
	for name := range have {
		t.Errorf("there is a file %s", name)
	}
}

func digestName(content string) string {
	return strings.Replace(digest.FromString(content).String(), ":", "-", 1)
}

func TestWhatBecomesOfAnArtifactsBlobs(t *testing.T) {
	r := labimage.Registry(t, labimage.Config{})
	s := open(t, image.Options{})
	entries := []labimage.Entry{labimage.Dir("d", 0o700), labimage.File("d/inside", 0o755, "inside")}
	unpacked := map[string]string{"d/inside": "inside"}
	titled := tarBlob(t, labimage.Gzip, entries...)
	titled.Title = "d"
	chart := tarBlob(t, labimage.Gzip, entries...)
	chart.MediaType = "application/vnd.cncf.helm.chart.content.v1.tar+gzip"
	archive := tarBlob(t, labimage.None, entries...)
	archive.MediaType, archive.Title = "application/x-tar", "a.tar"
	for i, c := range []struct {
		rule  string
		blobs []labimage.Blob
		want  map[string]string
	}{
		{"a blob is a file with its title", []labimage.Blob{text("a.txt", "a"), text("sub/dir/b", noise(100_000))},
			map[string]string{"a.txt": "a", "sub/dir/b": noise(100_000)}},
		{"a title may begin with ./", []labimage.Blob{text("./a", "a")}, map[string]string{"a": "a"}},
		{"a blob without a title is named by its digest", []labimage.Blob{text("", "a")}, map[string]string{digestName("a"): "a"}},
		{"a blob without a byte is a file", []labimage.Blob{text("none", "")}, map[string]string{"none": ""}},
		{"a file of a tar's block", []labimage.Blob{text("block", noise(512))}, map[string]string{"block": noise(512)}},
		{"a compressed file stays as it is", []labimage.Blob{{MediaType: "application/gzip", Title: "z", Content: titled.Content}},
			map[string]string{"z": string(titled.Content)}},
		{"a tar is unpacked", []labimage.Blob{tarBlob(t, labimage.None, entries...)}, unpacked},
		{"a tar with zstd is unpacked", []labimage.Blob{tarBlob(t, labimage.Zstd, entries...)}, unpacked},
		{"a tar with a title is unpacked", []labimage.Blob{titled}, unpacked},
		{"a chart is unpacked", []labimage.Blob{chart}, unpacked},
		{"what is called a tar and is none is a file", []labimage.Blob{{MediaType: ocispec.MediaTypeImageLayer, Title: "t", Content: []byte("text")}},
			map[string]string{"t": "text"}},
		{"a tar that is not called one is a file", []labimage.Blob{archive}, map[string]string{"a.tar": string(archive.Content)}},
		{"layers lie over each other", []labimage.Blob{tarBlob(t, labimage.Gzip, entries...), text("d/inside", "above"), text("d/more", "more")},
			map[string]string{"d/inside": "above", "d/more": "more"}},
		{"an empty blob is nothing", []labimage.Blob{{MediaType: ocispec.MediaTypeEmptyJSON, Content: []byte("{}")}}, nil},
		{"one blob twice is one file", []labimage.Blob{text("", "a"), text("", "a")}, map[string]string{digestName("a"): "a"}},
	} {
		t.Run(c.rule, func(t *testing.T) {
			ref := push(t, r, "blobs:"+string(rune('a'+i)), artifact(t, c.blobs...))
			root := mountVolume(t, s, "v"+string(rune('a'+i)), pull(t, s, ref))
			wantFiles(t, root, c.want)
			if err := os.WriteFile(filepath.Join(root, "new"), nil, 0o600); err == nil {
				t.Error("the volume can be written to")
			}
		})
	}
	wantWhole(t, s)
	if st, err := os.Stat(filepath.Join(mountVolume(t, s, "mode", r.Host+"/blobs:a"), "a.txt")); err != nil || st.Mode() != 0o644 || st.ModTime().Unix() != 0 {
		t.Errorf("a blob's file is %v, %v", st, err)
	}
}

func TestArtifactIsNoRootFileSystem(t *testing.T) {
	r := labimage.Registry(t, labimage.Config{})
	root := t.TempDir()
	s := open(t, image.Options{Root: root})
	id := pull(t, s, push(t, r, "art:1", artifact(t, text("a", "a"))))
	_, err := s.Prepare(t.Context(), image.Mount{Key: "c", Image: id})
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), labimage.ArtifactType) || !strings.Contains(err.Error(), "volume") {
		t.Errorf("error %v", err)
	}
	if keys, err := s.Prepared(t.Context()); err != nil || len(keys) > 0 {
		t.Errorf("left behind %v, %v", keys, err)
	}
}

func TestArtifactIsNamedByItsManifest(t *testing.T) {
	r := labimage.Registry(t, labimage.Config{})
	root := t.TempDir()
	s := open(t, image.Options{Root: root})
	one, two := artifact(t, text("a", "1")), artifact(t, text("a", "2"))
	first, second := push(t, r, "art:1", one), push(t, r, "art:2", two)
	ids := []string{pull(t, s, first), pull(t, s, second)}
	manifest, _ := one.Digest()
	if ids[0] != manifest.String() || ids[0] == ids[1] {
		t.Errorf("ids %v, want the manifests' digests: all such configs are equal", ids)
	}
	check := func() {
		got, err := s.Get(t.Context(), first)
		if err != nil || got.Artifact != labimage.ArtifactType || got.Size == 0 || string(got.Config.Raw) != "{}" {
			t.Fatalf("%+v, %v", got, err)
		}
		wantNames(t, s, ids[0], []string{first}, []string{r.Host + "/art@" + manifest.String()})
	}
	check()
	must(t, s.Close())
	s = open(t, image.Options{Root: root})
	check()
	must(t, s.Untag(t.Context(), first))
	if got, err := s.Get(t.Context(), ids[0]); err != nil || len(got.Tags) != 0 {
		t.Errorf("after untag %+v, %v", got, err)
	}
}

func TestArtifactsOfManyShapes(t *testing.T) {
	r := labimage.Registry(t, labimage.Config{})
	s := open(t, image.Options{})
	chart := labimage.WithManifest(artifact(t, text("a", "chart")), func(m *v1.Manifest) {
		m.Config.MediaType, m.ArtifactType = "application/vnd.example.chart", ""
	})
	index := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex), mutate.IndexAddendum{
		Add: artifact(t, text("a", "indexed")), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "unknown", Architecture: "unknown"}},
	})
	indexed, err := r.PushIndex("index:1", index)
	if err != nil {
		t.Fatal(err)
	}
	for ref, want := range map[string]string{push(t, r, "chart:1", chart): "chart", indexed: "indexed"} {
		wantFiles(t, mountVolume(t, s, want, pull(t, s, ref)), map[string]string{"a": want})
	}
	if got, err := s.Get(t.Context(), r.Host+"/chart:1"); err != nil || got.Artifact != "application/vnd.example.chart" {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestHostileTitlesAreRefused(t *testing.T) {
	r := labimage.Registry(t, labimage.Config{})
	for rule, blobs := range map[string][]labimage.Blob{
		"parent":              {text("..", "x")},
		"climbing":            {text("../../etc/passwd", "x")},
		"climbing inside":     {text("a/../../x", "x")},
		"absolute":            {text("/etc/passwd", "x")},
		"the root":            {text(".", "x")},
		"a slash":             {text("/", "x")},
		"double slash":        {text("a//b", "x")},
		"trailing slash":      {text("a/", "x")},
		"whiteout":            {text(".wh.etc", "x")},
		"whiteout below":      {text("a/.wh..wh..opq", "x")},
		"NUL":                 {text("a\x00b", "x")},
		"too long":            {text(strings.Repeat("a", 256), "x")},
		"two of one name":     {text("a", "x"), text("a", "y")},
		"one name, two forms": {text("a", "x"), text("./a", "y")},
		"file and directory":  {text("a", "x"), text("a/b", "y")},
		"a digest's name":     {text("", "x"), text(digestName("x"), "y")},
	} {
		t.Run(rule, func(t *testing.T) {
			root := t.TempDir()
			s := open(t, image.Options{Root: root})
			ref := push(t, r, "hostile:1", artifact(t, blobs...))
			if _, err := s.Pull(t.Context(), &pod.Pull{Ref: ref}); !errdefs.IsFailedPrecondition(err) {
				t.Errorf("error %v", err)
			}
			wantNothingLeft(t, root)
		})
	}
}

func TestArtifactThatLiesAboutItsBlobs(t *testing.T) {
	r := labimage.Registry(t, labimage.Config{})
	long := noise(2000)
	for rule, edit := range map[string]func(m *v1.Manifest){
		"longer than it says":  func(m *v1.Manifest) { m.Layers[0].Size = 512 },
		"shorter than it says": func(m *v1.Manifest) { m.Layers[0].Size = 4096 },
	} {
		t.Run(rule, func(t *testing.T) {
			root := t.TempDir()
			s := open(t, image.Options{Root: root})
			img := labimage.WithManifest(artifact(t, text("a", long)), edit)
			ref := push(t, r, "liar:1", img)
			_, err := s.Pull(t.Context(), &pod.Pull{Ref: ref})
			if !errdefs.IsDataLoss(err) || !strings.Contains(err.Error(), " bytes that it should have") {
				t.Errorf("error %v", err)
			}
			wantNothingLeft(t, root)
		})
	}
}

func TestArtifactIsVerifiedAndMended(t *testing.T) {
	r := labimage.Registry(t, labimage.Config{})
	img := artifact(t, text("dir/file", noise(50_000)), tarBlob(t, labimage.Gzip, labimage.File("tarred", 0o600, noise(9_000))))
	for rule, c := range map[string]struct {
		path   string
		damage func(t *testing.T, path string)
		heal   func(t *testing.T, s *image.Store, ref string)
	}{
		"flipped byte of a file": {"dir/file", flip, repair},
		"missing file":           {"dir/file", func(t *testing.T, p string) { must(t, os.Remove(p)) }, repair},
		"changed mode":           {"dir/file", func(t *testing.T, p string) { must(t, os.Chmod(p, 0o777)) }, repair},
		"truncated in a tar":     {"tarred", func(t *testing.T, p string) { must(t, os.Truncate(p, 1)) }, repair},
		"healed by a pull": {"dir/file", flip, func(t *testing.T, s *image.Store, ref string) {
			verify(t, s, image.Verify{})
			pull(t, s, ref)
		}},
	} {
		t.Run(rule, func(t *testing.T) {
			root := t.TempDir()
			s := open(t, image.Options{Root: root})
			ref := push(t, r, "fragile:1", img)
			path := mountVolume(t, s, "v", pull(t, s, ref))
			c.damage(t, filepath.Join(layerWith(t, root, c.path), c.path))
			if found := verify(t, s, image.Verify{}); found[0].Whole() {
				t.Error("the damage is not found")
			}
			c.heal(t, s, ref)
			wantWhole(t, s)
			wantFiles(t, path, map[string]string{"dir/file": noise(50_000), "tarred": noise(9_000)})
		})
	}
}

func repair(t *testing.T, s *image.Store, _ string) {
	t.Helper()
	if v := verify(t, s, image.Verify{Repair: true}); !v[0].Whole() || v[0].Error != "" {
		t.Errorf("not mended: %+v", v[0])
	}
}

func TestExportedArtifactsImportAsTheyWere(t *testing.T) {
	r := labimage.Registry(t, labimage.Config{})
	from := open(t, image.Options{})
	want := map[string]string{"a": "a", "sub/b": noise(70_000), "tarred": "in a tar"}
	tarred := labimage.File("tarred", 0o600, "in a tar")
	img := push(t, r, "image:1", build(t, v1.Config{}, []labimage.Entry{tarred}))
	for rule, c := range map[string]struct {
		compression labimage.Compression
		same        bool
	}{"not compressed": {labimage.None, true}, "compressed": {labimage.Gzip, false}} {
		t.Run(rule, func(t *testing.T) {
			ref := push(t, r, strings.ReplaceAll(rule, " ", "-")+":1", artifact(t, text("a", "a"), text("sub/b", noise(70_000)),
				tarBlob(t, c.compression, tarred), labimage.Blob{MediaType: ocispec.MediaTypeEmptyJSON, Content: []byte("{}")}))
			ids := []string{pull(t, from, ref), pull(t, from, img)}
			data := export(t, from, ref, img)

			root := t.TempDir()
			to := open(t, image.Options{Root: root})
			got, err := to.Import(t.Context(), bytes.NewReader(data))
			if err != nil || len(got) != 2 || got[1] != ids[1] || (got[0] == ids[0]) != c.same {
				t.Fatalf("imported %v, %v; were %v", got, err, ids)
			}
			wantFiles(t, mountVolume(t, to, "v", ref), want)
			wantWhole(t, to)
			if again := export(t, to, ref, img); !bytes.Equal(again, data) {
				t.Error("a second export differs from the first")
			}
			flip(t, filepath.Join(layerWith(t, root, "sub/b"), "sub/b"))
			if err := to.Export(t.Context(), ref, &bytes.Buffer{}); !errdefs.IsDataLoss(err) {
				t.Errorf("export of a damaged artifact: %v", err)
			}
			flip(t, filepath.Join(layerWith(t, root, "sub/b"), "sub/b"))
			at := bytes.Index(data, []byte(noise(70_000)))
			data[at+1000] ^= 1
			if _, err := open(t, image.Options{}).Import(t.Context(), bytes.NewReader(data)); !errdefs.IsDataLoss(err) {
				t.Errorf("import of a damaged export: %v", err)
			}
		})
	}
}

func TestArtifactStaysWhileItIsMounted(t *testing.T) {
	r := labimage.Registry(t, labimage.Config{})
	root := t.TempDir()
	s := open(t, image.Options{Root: root})
	shared := text("shared", noise(1000))
	one := pull(t, s, push(t, r, "one:1", artifact(t, shared, text("own", "1"))))
	before := r.Requests(http.MethodGet, "/blobs/")
	two := pull(t, s, push(t, r, "two:1", artifact(t, shared, text("own", "2"))))
	if n := r.Requests(http.MethodGet, "/blobs/") - before; n != 1 {
		t.Errorf("%d blobs were fetched, want the one that is not shared", n)
	}
	path := mountVolume(t, s, "v", one)
	must(t, s.Remove(t.Context(), one), s.Remove(t.Context(), two))
	wantFiles(t, path, map[string]string{"shared": noise(1000), "own": "1"})
	must(t, s.Close())
	if err := unix.Unmount(path, 0); err != nil { // what a reboot forgets
		t.Fatal(err)
	}
	s = open(t, image.Options{Root: root})
	wantFiles(t, mountVolume(t, s, "v", one), map[string]string{"shared": noise(1000), "own": "1"})
	must(t, s.Release(t.Context(), "v"))
	wantNothingLeft(t, root)
}

func TestVolumesOfImagesHaveTheirRoot(t *testing.T) {
	r := labimage.Registry(t, labimage.Config{})
	s := open(t, image.Options{})
	ref := push(t, r, "app:1", build(t, v1.Config{}, []labimage.Entry{labimage.Dir("./", 0o750), labimage.File("f", 0o644, "f")}))
	for key, ids := range map[string]image.Mount{"plain": {}, "mapped": {IDs: userns(t, 65536)}} {
		m := image.Mount{Key: key, Image: pull(t, s, ref), Volume: true, IDs: ids.IDs}
		path, err := s.Prepare(t.Context(), m)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Release(context.Background(), key) })
		st, err := os.Stat(path)
		if err != nil || st.Mode().Perm() != 0o750 {
			t.Errorf("%s: the root is %v, %v", key, st, err)
		}
		if err := os.WriteFile(filepath.Join(path, "x"), nil, 0o600); !slices.Contains([]error{unix.EROFS}, unwrapped(err)) {
			t.Errorf("%s: a write gives %v", key, err)
		}
	}
}

func unwrapped(err error) error {
	if e, ok := err.(*fs.PathError); ok { //nolint:errorlint // os.WriteFile returns nothing else
		return e.Err
	}
	return err
}
