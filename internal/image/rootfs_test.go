package image_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"gantry/internal/image"
	"gantry/internal/labimage"
)

func rootfsOf(t *testing.T, layers ...[]labimage.Entry) string {
	t.Helper()
	r := labimage.Registry(t, labimage.Config{})
	s := open(t, image.Options{})
	return prepare(t, s, "c", pull(t, s, push(t, r, "app:1", build(t, v1.Config{}, layers...))))
}

func TestLayersHideWhatTheySay(t *testing.T) {
	root := rootfsOf(t,
		[]labimage.Entry{
			labimage.Dir("kept", 0o755), labimage.File("kept/a", 0o644, "lower a"), labimage.File("kept/b", 0o644, "lower b"),
			labimage.Dir("opaque", 0o755), labimage.File("opaque/hidden", 0o644, "x"),
			labimage.Dir("gone", 0o755), labimage.File("gone/x", 0o644, "x"),
			labimage.Dir("again", 0o755), labimage.File("again/old", 0o644, "x"),
			labimage.Dir("sooner", 0o755), labimage.File("sooner/old", 0o644, "x"),
			labimage.File("file", 0o644, "file"), labimage.File("to-dir", 0o644, "file"),
		},
		[]labimage.Entry{
			labimage.File("kept/a", 0o600, "upper a"), labimage.Whiteout("kept/b"),
			labimage.Dir("opaque", 0o755), labimage.Opaque("opaque"), labimage.File("opaque/new", 0o644, "new"),
			labimage.Whiteout("gone"), labimage.Whiteout("file"),
			// a directory that is removed and comes anew, in both orders
			labimage.Whiteout("again"), labimage.Dir("again", 0o755), labimage.File("again/new", 0o644, "new"),
			labimage.Dir("sooner", 0o755), labimage.File("sooner/new", 0o644, "new"), labimage.Whiteout("sooner"),
			labimage.Dir("to-dir", 0o755), labimage.File("to-dir/x", 0o644, "x"),
		})
	var have []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			rel, _ := filepath.Rel(root, path)
			have = append(have, rel+"="+read(t, path))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	want := "again/new=new kept/a=upper a opaque/new=new sooner/new=new to-dir/x=x"
	if got := strings.Join(have, " "); got != want {
		t.Errorf("the merged tree is\n%s, want\n%s", got, want)
	}
}

func TestDirectoriesThatALayerDoesNotDescribeAreTheLowerLayers(t *testing.T) {
	secret := labimage.Dir("srv/secret", 0o2750)
	secret.Uid, secret.Gid = 1000, 500
	secret.PAXRecords = map[string]string{"SCHILY.xattr.user.note": "kept"}
	top := labimage.Dir("./", 0o700)
	r := labimage.Registry(t, labimage.Config{})
	lower := []labimage.Entry{top, labimage.Dir("srv", 0o711), secret, labimage.Dir("old", 0o700)}
	upper := []labimage.Entry{
		labimage.File("srv/secret/key", 0o600, "key"), labimage.File("new/file", 0o644, "f"),
		labimage.Whiteout("old"), labimage.File("plain", 0o644, "p"),
	}
	again := []labimage.Entry{labimage.File("srv/secret/other", 0o600, "o"), labimage.File("old/file", 0o644, "o")}
	root := t.TempDir()
	s := open(t, image.Options{Root: root})
	id := pull(t, s, push(t, r, "app:1", build(t, v1.Config{}, lower, upper, again)))
	alone := pull(t, s, push(t, r, "alone:1", build(t, v1.Config{}, upper)))
	rootfs := prepare(t, s, "c", id)
	for dir, want := range map[string]string{
		".": "700 0 0", "srv": "711 0 0", "srv/secret": "2750 1000 500", "new": "755 0 0", "old": "755 0 0",
	} {
		if got := describeDir(t, filepath.Join(rootfs, dir)); got != want {
			t.Errorf("%s is %s, want %s", dir, got, want)
		}
	}
	value := make([]byte, 16)
	n, err := unix.Getxattr(filepath.Join(rootfs, "srv/secret"), "user.note", value)
	if err != nil || string(value[:n]) != "kept" {
		t.Errorf("attribute is %q, %v", value[:max(n, 0)], err)
	}
	if got := describeDir(t, filepath.Join(prepare(t, s, "a", alone), "srv/secret")); got != "755 0 0" {
		t.Errorf("without the lower layer the directory is %s", got)
	}
	_ = s.Close()
	s = open(t, image.Options{Root: root})
	for _, key := range []string{"c", "a"} {
		if err := s.Release(t.Context(), key); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range []string{id, alone} {
		if err := s.Remove(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	wantNothingLeft(t, root)
}

func describeDir(t *testing.T, path string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%o %d %d", st.Mode&0o7777, st.Uid, st.Gid)
}

func TestManyLayersAndALongRoot(t *testing.T) {
	var layers [][]labimage.Entry
	for i := range 300 {
		layers = append(layers, []labimage.Entry{labimage.File(fmt.Sprintf("f%03d", i), 0o644, fmt.Sprint(i)), labimage.File("last", 0o644, fmt.Sprint(i))})
	}
	r := labimage.Registry(t, labimage.Config{})
	root := filepath.Join(t.TempDir(), strings.Repeat("long,name:with\\marks", 10))
	s := open(t, image.Options{Root: root, NoSync: true})
	rootfs := prepare(t, s, "c", pull(t, s, push(t, r, "app:1", build(t, v1.Config{}, layers...))))
	if got := read(t, rootfs, "last"); got != "299" {
		t.Errorf("the uppermost layer is not on top: %q", got)
	}
	for _, i := range []int{0, 150, 299} {
		if got := read(t, rootfs, fmt.Sprintf("f%03d", i)); got != fmt.Sprint(i) {
			t.Errorf("layer %d is missing: %q", i, got)
		}
	}
}

func TestImageWithoutLayers(t *testing.T) {
	if entries, err := os.ReadDir(rootfsOf(t)); err != nil || len(entries) != 0 {
		t.Errorf("the root is %v, %v", entries, err)
	}
}

func TestPrepareOfWhatIsNotThere(t *testing.T) {
	root := t.TempDir()
	s := open(t, image.Options{Root: root})
	if _, err := s.Prepare(t.Context(), image.Mount{Key: "c", Image: "sha256:" + strings.Repeat("0", 64)}); !errdefs.IsNotFound(err) {
		t.Errorf("absent image: %v", err)
	}
	for _, key := range []string{"", ".", "..", "../x", "a/b"} {
		if _, err := s.Prepare(t.Context(), image.Mount{Key: key, Image: "x"}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("key %q: %v", key, err)
		}
	}
	if err := s.Release(t.Context(), "never"); err != nil {
		t.Error(err)
	}
	wantNothingLeft(t, root)
}

func TestRootfsAfterAReboot(t *testing.T) {
	r := labimage.Registry(t, labimage.Config{})
	root := t.TempDir()
	s := open(t, image.Options{Root: root})
	id := pull(t, s, push(t, r, "app:1", build(t, v1.Config{}, []labimage.Entry{labimage.File("f", 0o644, "f")})))
	rootfs := prepare(t, s, "c", id)
	if err := os.WriteFile(filepath.Join(rootfs, "written"), []byte("w"), 0o600); err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
	if err := unix.Unmount(rootfs, 0); err != nil { // what a reboot forgets
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(root, "containers", "torn", "upper"), 0o755); err != nil {
		t.Fatal(err)
	}
	s = open(t, image.Options{Root: root})
	if keys, _ := s.Prepared(t.Context()); fmt.Sprint(keys) != "[c torn]" {
		t.Errorf("prepared are %v", keys)
	}
	if again, err := s.Prepare(t.Context(), image.Mount{Key: "c", Image: id}); err != nil || again != rootfs || read(t, rootfs, "written") != "w" {
		t.Errorf("prepared again: %q, %v", again, err)
	}
	for _, key := range []string{"c", "torn"} {
		if err := s.Release(t.Context(), key); err != nil {
			t.Fatal(err)
		}
	}
	if keys, _ := s.Prepared(t.Context()); len(keys) > 0 {
		t.Errorf("after release prepared are %v", keys)
	}
}

func TestReleaseWhileARootfsIsBusy(t *testing.T) {
	r := labimage.Registry(t, labimage.Config{})
	s := open(t, image.Options{})
	id := pull(t, s, push(t, r, "app:1", build(t, v1.Config{}, []labimage.Entry{labimage.File("f", 0o644, "f")})))
	f, err := os.Open(filepath.Join(prepare(t, s, "c", id), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := s.Release(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	if data, err := io.ReadAll(f); err != nil || string(data) != "f" {
		t.Errorf("the open file reads %q, %v", data, err)
	}
}

func TestWebImageAnswers(t *testing.T) {
	r := labimage.Registry(t, labimage.Config{})
	img, err := labimage.Web()
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, image.Options{})
	id := pull(t, s, push(t, r, "web:1", img))
	rootfs := prepare(t, s, "c", id)
	for _, dev := range []struct {
		name  string
		minor uint32
	}{{"null", 3}, {"urandom", 9}} {
		if err = unix.Mknod(filepath.Join(rootfs, "dev", dev.name), unix.S_IFCHR|0o666, int(unix.Mkdev(1, dev.minor))); err != nil {
			t.Fatal(err)
		}
	}
	for fd, name := range []string{"stdin", "stdout", "stderr"} {
		if err = os.Symlink(fmt.Sprintf("/proc/self/fd/%d", fd), filepath.Join(rootfs, "dev", name)); err != nil {
			t.Fatal(err)
		}
	}
	if err = unix.Mount("proc", filepath.Join(rootfs, "proc"), "proc", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(filepath.Join(rootfs, "proc"), unix.MNT_DETACH) }()
	got, err := s.Get(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), got.Config.Entrypoint[0], got.Config.Entrypoint[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: rootfs}
	cmd.Dir = "/"
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = out.Close() }()
	cmd.Stdout, cmd.Stderr = out, out
	if err = cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Signal(unix.SIGTERM); _ = cmd.Wait() }()
	page, err := getPage(t, "http://127.0.0.1:80/")
	if err != nil || page != labimage.Page {
		t.Errorf("the page is %q, %v; the server said %s", page, err, read(t, out.Name()))
	}
}

// getPage waits until a server that was just started answers.
func getPage(t *testing.T, url string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return "", err
		}
		var resp *http.Response
		if resp, err = http.DefaultClient.Do(req); err == nil {
			defer func() { _ = resp.Body.Close() }()
			page, broken := io.ReadAll(resp.Body)
			return string(page), broken
		}
		select {
		case <-ctx.Done():
			return "", errors.Join(ctx.Err(), err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func TestUsageIsWhatTheDiskSays(t *testing.T) {
	r := labimage.Registry(t, labimage.Config{})
	s := open(t, image.Options{UsageAge: time.Nanosecond})
	id := pull(t, s, push(t, r, "app:1", build(t, v1.Config{}, []labimage.Entry{
		labimage.File("a", 0o644, noise(1_000_000)), labimage.Link("b", "a"), labimage.Dir("d", 0o755),
	})))
	root := prepare(t, s, "c", id)
	if err := os.WriteFile(filepath.Join(root, "written"), []byte(noise(500_000)), 0o600); err != nil {
		t.Fatal(err)
	}
	images, layers, err := s.Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if b := images[0].Bytes; b < 1_000_000 || b > 1_100_000 {
		t.Errorf("images take %d bytes", b)
	}
	if n := images[0].Inodes; n < 3 || n > 8 {
		t.Errorf("images take %d inodes", n)
	}
	if b := layers[0].Bytes; b < 500_000 || b > 550_000 {
		t.Errorf("writable layers take %d bytes", b)
	}
	if _, err := os.Stat(images[0].Mountpoint); err != nil || images[0].At.IsZero() {
		t.Errorf("images are at %q, %v, measured %v", images[0].Mountpoint, err, images[0].At)
	}
}
