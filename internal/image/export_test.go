package image_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"gantry/internal/engine"
	"gantry/internal/image"
	"gantry/internal/labimage"
)

var _ engine.ImagePorter = (*image.Store)(nil)

func export(t *testing.T, s *image.Store, refs ...string) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := s.ExportAll(t.Context(), refs, &out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestExportedImagesImportAsTheyWere(t *testing.T) {
	r := labimage.Registry(t, labimage.Config{})
	odd := push(t, r, "fragile:1", fragile(t))
	other := push(t, r, "other:2", build(t, v1.Config{User: "1"}, []labimage.Entry{labimage.File("o", 0o644, "o")}))
	from := open(t, image.Options{})
	ids := []string{pull(t, from, odd), pull(t, from, other)}
	data := export(t, from, odd, other)

	root := t.TempDir()
	to := open(t, image.Options{Root: root})
	got, err := to.Import(t.Context(), bytes.NewReader(data))
	if err != nil || !slices.Equal(got, ids) {
		t.Fatalf("imported %v, %v; want %v", got, err, ids)
	}
	for _, ref := range []string{odd, other} {
		if _, err := to.Get(t.Context(), ref); err != nil {
			t.Errorf("the name is lost: %v", err)
		}
	}
	rootfs := prepare(t, to, "c", ids[0])
	if read(t, rootfs, "etc/link") != noise(300_000) || read(t, rootfs, "private/key") != "key" {
		t.Error("the files are not what they were")
	}
	wantWhole(t, to)
	if again := export(t, to, odd, other); !bytes.Equal(again, data) {
		t.Error("a second export differs from the first")
	}
	flip(t, filepath.Join(layerWith(t, root, "top"), "top"))
	if err := to.Export(t.Context(), odd, &bytes.Buffer{}); !errdefs.IsDataLoss(err) {
		t.Errorf("export of a damaged image: %v", err)
	}
	if found := verify(t, to, image.Verify{Images: []string{odd}, Repair: true}); !strings.Contains(found[0].Error, "import it again") {
		t.Errorf("repair without a registry: %q", found[0].Error)
	}
	if _, err := to.Import(t.Context(), bytes.NewReader(data)); err != nil {
		t.Error(err)
	}
	wantWhole(t, to)
}

func TestOthersReadWhatIsExported(t *testing.T) {
	r := labimage.Registry(t, labimage.Config{})
	s := open(t, image.Options{})
	ref := push(t, r, "fragile:1", fragile(t))
	id := pull(t, s, ref)
	file := filepath.Join(t.TempDir(), "images.tar")
	if err := os.WriteFile(file, export(t, s, ref), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, from := range []string{"oci-archive:" + file, "docker-archive:" + file} {
		dir := t.TempDir()
		// skopeo checks every digest that a manifest names
		out, err := exec.CommandContext(t.Context(), "skopeo", "--insecure-policy", "copy", from, "dir:"+dir).CombinedOutput()
		if err != nil {
			t.Fatalf("skopeo (Debian: skopeo) does not take it as %s: %v\n%s", from, err, out)
		}
		if _, err := os.Stat(filepath.Join(dir, strings.TrimPrefix(id, "sha256:"))); err != nil {
			t.Errorf("%s: the config is not the image's: %v", from, err)
		}
	}
}

func TestWhatCannotBeExported(t *testing.T) {
	r := labimage.Registry(t, labimage.Config{})
	s := open(t, image.Options{})
	twice := push(t, r, "twice:1", build(t, v1.Config{}, []labimage.Entry{labimage.File("f", 0o600, "first"), labimage.File("f", 0o600, "second")}))
	pull(t, s, twice)
	if err := s.Export(t.Context(), twice, &bytes.Buffer{}); !errdefs.IsNotImplemented(err) {
		t.Errorf("a layer that replaces its own file: %v", err)
	}
	if err := s.Export(t.Context(), "absent:1", &bytes.Buffer{}); !errdefs.IsNotFound(err) {
		t.Errorf("an absent image: %v", err)
	}
}
