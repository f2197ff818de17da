package unpack_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"golang.org/x/sys/unix"

	"gantry/internal/image/unpack"
	"gantry/internal/lab"
	"gantry/internal/labimage"
)

func TestMain(m *testing.M) { lab.Main(m) }

func layer(t *testing.T, entries ...labimage.Entry) []byte {
	t.Helper()
	data, err := labimage.Tar(entries...)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func entry(typeflag byte, name, link string) labimage.Entry {
	return labimage.Entry{Header: tar.Header{Typeflag: typeflag, Name: name, Linkname: link, Mode: 0o644, ModTime: labimage.Epoch}}
}

// odd is one of every entry that a layer may have, hard cases first.
func odd() []labimage.Entry {
	long := strings.Repeat("long-name-", 20)
	setuid := labimage.File("bin/su", 0o4755, "setuid")
	setuid.Uid, setuid.Gid = 12, 34
	capable := labimage.File("bin/ping", 0o755, "capable")
	// VFS_CAP_REVISION_2 with CAP_NET_RAW permitted and effective (capabilities(7))
	capable.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}
	capable.Uid = 1000
	noted := labimage.Dir("noted", 0o2775)
	noted.Gid = 500
	noted.PAXRecords = map[string]string{"SCHILY.xattr.user.note": "a value\x00with zero"}
	char, block := entry(tar.TypeChar, "dev/null", ""), entry(tar.TypeBlock, "dev/loop300", "")
	char.Devmajor, char.Devminor = 1, 3
	block.Devmajor, block.Devminor = 7, 300
	big := labimage.File("ids", 0o600, "big ids")
	big.Uid, big.Gid = 4_000_000_000, 3_000_000_000
	old := labimage.File("old", 0o644, "before the epoch")
	old.ModTime = time.Date(1931, 3, 4, 5, 6, 7, 8, time.UTC)
	gnu := labimage.File("gnu/"+long+"/"+long, 0o644, "gnu long name")
	gnu.Format, gnu.ModTime = tar.FormatGNU, gnu.ModTime.Truncate(time.Second)
	link := labimage.Symlink("bin/sh", "/bin/busybox")
	link.Uid, link.Gid = 5, 6
	return []labimage.Entry{
		labimage.Dir("./", 0o750), labimage.Dir("bin", 0o755), labimage.Dir("dev", 0o755), labimage.Dir("gnu", 0o755),
		labimage.Dir("gnu/"+long, 0o700), labimage.Dir("tmp", 0o1777), noted,
		setuid, capable, labimage.Link("bin/ping4", "bin/ping"), labimage.File("noted/inside", 0o644, "in a setgid directory"),
		link, labimage.Symlink("dangling", "no/where"), labimage.Symlink("up", "../../../../etc"),
		char, block, entry(tar.TypeFifo, "dev/fifo", ""), big, old, gnu,
		labimage.File(long+"/"+long, 0o644, "pax long name"), labimage.File("empty", 0o000, ""),
		labimage.File("naïve file\twith ünicode", 0o644, "x"),
		labimage.File("twice", 0o600, "first"), labimage.File("twice", 0o640, "second"),
		labimage.File("./dot/./file", 0o644, "dots"), labimage.File("/absolute", 0o644, "absolute"),
		labimage.Dir("late", 0o711), labimage.File("late/child", 0o644, "must not change the directory's time"),
	}
}

func TestEveryOddEntryMatchesUmoci(t *testing.T) {
	data := layer(t, odd()...)
	ours := t.TempDir()
	sum, err := unpack.Layer(t.Context(), ours, bytes.NewReader(data), unpack.Limits{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	compare(t, umoci(t, data), ours, sum.Implicit)
}

// The files of Debian packages as they lie on this machine: set-id programs and what belongs to groups,
// links, capabilities, configuration, documentation in many small files, libraries.
func TestDebianPackagesMatchUmoci(t *testing.T) {
	for _, set := range [][]string{
		{"passwd", "login"}, {"coreutils", "util-linux"}, {"iproute2", "iptables"}, {"perl-base", "base-files"},
		{"nginx-light", "nginx-common"}, {"dpkg", "apt", "procps"},
	} {
		t.Run(strings.Join(set, " "), func(t *testing.T) {
			data := packaged(t, set)
			ours := t.TempDir()
			sum, err := unpack.Layer(t.Context(), ours, bytes.NewReader(data), unpack.Limits{}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if sum.Entries < 50 {
				t.Errorf("the packages have %d entries only", sum.Entries)
			}
			theirs := umoci(t, data)
			restoreTimes(t, data, theirs)
			compare(t, theirs, ours, sum.Implicit)
		})
	}
}

// restoreTimes gives directories below root the times that the tar says: umoci leaves some with the time
// at which it made the last thing in them.
func restoreTimes(t *testing.T, data []byte, root string) {
	t.Helper()
	for tr := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag != tar.TypeDir {
			continue
		}
		if err := os.Chtimes(filepath.Join(root, h.Name), time.Time{}, h.ModTime); err != nil {
			t.Fatal(err)
		}
	}
}

// packaged is a tar of what packages installed, with everything that GNU tar knows about it.
func packaged(t *testing.T, names []string) []byte {
	t.Helper()
	var list bytes.Buffer
	out, err := exec.CommandContext(t.Context(), "dpkg", append([]string{"-L"}, names...)...).Output()
	if err != nil {
		t.Fatalf("files of the Debian packages %v: %v", names, err)
	}
	seen := make(map[string]bool)
	for path := range strings.Lines(string(out)) {
		dir, err := filepath.EvalSymlinks(filepath.Dir(strings.TrimSpace(path))) // /bin may be a link
		path = filepath.Join(dir, filepath.Base(strings.TrimSpace(path)))
		if _, gone := os.Lstat(path); err != nil || gone != nil || path == "/" || seen[path] {
			continue // what an administrator removed is not in the image either
		}
		seen[path] = true
		fmt.Fprintln(&list, strings.TrimPrefix(path, "/"))
	}
	cmd := exec.CommandContext(t.Context(), "tar", "--create", "--format=posix", "--xattrs", "--numeric-owner", "--no-recursion", "--directory=/", "--files-from=-")
	var data, said bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = &list, &data, &said
	// 1 says that something changed while it was read (a directory, on a machine where more goes on): the
	// tar is whole
	if err := cmd.Run(); err != nil && cmd.ProcessState.ExitCode() != 1 {
		t.Fatalf("tar: %v\n%s", err, &said)
	}
	return data.Bytes()
}

// umoci unpacks an image of this one layer with umoci and returns the tree.
func umoci(t *testing.T, data []byte) string {
	t.Helper()
	l, err := labimage.Layer(data, labimage.Gzip)
	if err != nil {
		t.Fatal(err)
	}
	img, err := labimage.Image(v1.Config{}, l)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	p, err := layout.Write(filepath.Join(dir, "oci"), empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "x"})); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "umoci", "unpack", "--image", filepath.Join(dir, "oci")+":x", filepath.Join(dir, "bundle"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("umoci (Debian package umoci): %v: %s", err, out)
	}
	return filepath.Join(dir, "bundle", "rootfs")
}

// compare compares two trees, but for the times of what no entry describes and of the root, which
// umoci touches when it is done.
func compare(t *testing.T, theirs, ours string, undescribed []string) {
	t.Helper()
	want, got := describe(t, theirs), describe(t, ours)
	for _, name := range append(undescribed, ".") {
		want[name], got[name] = untimed.ReplaceAllString(want[name], ""), untimed.ReplaceAllString(got[name], "")
	}
	for _, name := range slices.Sorted(keys(want, got)) {
		if want[name] != got[name] {
			t.Errorf("%s:\nthey %s\nwe   %s", name, want[name], got[name])
		}
	}
}

var untimed = regexp.MustCompile(` mtime [-0-9.]+`)

func keys(a, b map[string]string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range a {
			if !yield(k) {
				return
			}
		}
		for k := range b {
			if _, ok := a[k]; !ok && !yield(k) {
				return
			}
		}
	}
}

// describe says everything about every file below root.
func describe(t *testing.T, root string) map[string]string {
	t.Helper()
	all := make(map[string]string)
	inodes := make(map[uint64]string)
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		what := fmt.Sprintf("mode %o owner %d:%d device %d mtime %d.%09d", st.Mode, st.Uid, st.Gid, st.Rdev, st.Mtim.Sec, st.Mtim.Nsec)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			what += fmt.Sprintf(" content %.80q (%d)", data, len(data))
			if first, ok := inodes[st.Ino]; ok {
				what += " is " + first
			} else {
				inodes[st.Ino] = rel
			}
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			what += " to " + target
		}
		all[rel] = what + xattrs(t, path)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func xattrs(t *testing.T, path string) (all string) {
	t.Helper()
	buf := make([]byte, 4096)
	n, err := unix.Llistxattr(path, buf)
	if err != nil {
		t.Fatal(err)
	}
	names := strings.Split(strings.TrimRight(string(buf[:n]), "\x00"), "\x00")
	slices.Sort(names)
	for _, name := range names {
		if name == "" || strings.HasPrefix(name, "user.rootlesscontainers") {
			continue
		}
		n, err := unix.Lgetxattr(path, name, buf)
		if err != nil {
			t.Fatal(err)
		}
		all += fmt.Sprintf(" %s=%q", name, buf[:n])
	}
	return all
}

func TestHostileLayersStayInside(t *testing.T) {
	for name, c := range map[string]struct {
		entries []labimage.Entry
		want    func(error) bool // nil: harmless inside the layer
	}{
		"dots at the beginning":              {[]labimage.Entry{labimage.File("../victim/file", 0o644, "evil")}, errdefs.IsInvalidArgument},
		"dots in the middle":                 {[]labimage.Entry{labimage.File("a/../../victim/file", 0o644, "evil")}, errdefs.IsInvalidArgument},
		"absolute dots":                      {[]labimage.Entry{labimage.File("/../victim/file", 0o644, "evil")}, errdefs.IsInvalidArgument},
		"symlink to a directory outside":     {[]labimage.Entry{labimage.Symlink("l", "../victim"), labimage.File("l/file", 0o644, "evil")}, nil},
		"absolute symlink":                   {[]labimage.Entry{labimage.Symlink("l", "VICTIM"), labimage.File("l/file", 0o644, "evil")}, nil},
		"symlink through a symlink":          {[]labimage.Entry{labimage.Symlink("a", ".."), labimage.Symlink("b", "a/victim"), labimage.File("b/file", 0o644, "evil")}, nil},
		"file through a symlink to it":       {[]labimage.Entry{labimage.Symlink("l", "../victim/file"), labimage.File("l", 0o644, "evil")}, nil},
		"directory over a symlink":           {[]labimage.Entry{labimage.Symlink("l", "../victim"), labimage.Dir("l", 0o777)}, nil},
		"whiteout through a symlink":         {[]labimage.Entry{labimage.Symlink("l", "../victim"), labimage.Whiteout("l/file")}, nil},
		"opaque through a symlink":           {[]labimage.Entry{labimage.Symlink("l", "../victim"), labimage.Opaque("l")}, nil},
		"hard link outside":                  {[]labimage.Entry{labimage.Link("h", "../victim/file"), labimage.File("h", 0o644, "evil")}, errdefs.IsInvalidArgument},
		"hard link to an absolute name":      {[]labimage.Entry{labimage.Link("h", "VICTIM/file")}, errdefs.IsInvalidArgument},
		"hard link through a symlink":        {[]labimage.Entry{labimage.Symlink("l", "../victim"), labimage.Link("h", "l/file")}, errdefs.IsInvalidArgument},
		"hard link to a symlink, written":    {[]labimage.Entry{labimage.Symlink("l", "VICTIM/file"), labimage.Link("h", "l"), labimage.File("h", 0o644, "evil")}, nil},
		"hard link to a directory":           {[]labimage.Entry{labimage.Dir("d", 0o755), labimage.Link("h", "d")}, errdefs.IsInvalidArgument},
		"a file as a directory":              {[]labimage.Entry{labimage.File("f", 0o644, "x"), labimage.File("f/x", 0o644, "x")}, errdefs.IsInvalidArgument},
		"symlinks in a circle":               {[]labimage.Entry{labimage.Symlink("a", "b"), labimage.Symlink("b", "a"), labimage.File("a/x", 0o644, "x")}, errdefs.IsInvalidArgument},
		"the root as a file":                 {[]labimage.Entry{labimage.File(".", 0o644, "x")}, errdefs.IsInvalidArgument},
		"whiteout of the parent":             {[]labimage.Entry{labimage.File("d/.wh...", 0o644, "")}, errdefs.IsInvalidArgument},
		"whiteout of nothing":                {[]labimage.Entry{labimage.File(".wh.", 0o644, "")}, errdefs.IsInvalidArgument},
		"a name that is too long":            {[]labimage.Entry{labimage.File(strings.Repeat("n", 300), 0o644, "x")}, errdefs.IsInvalidArgument},
		"an entry of an unknown type":        {[]labimage.Entry{entry('Z', "z", "")}, errdefs.IsInvalidArgument},
		"redirect by overlayfs's attributes": {[]labimage.Entry{redirect()}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			base := t.TempDir()
			victim, root := filepath.Join(base, "victim"), filepath.Join(base, "layer")
			for _, d := range []string{victim, root} {
				if err := os.Mkdir(d, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(filepath.Join(victim, "file"), []byte("innocent"), 0o600); err != nil {
				t.Fatal(err)
			}
			before := describe(t, victim)
			for i := range c.entries {
				c.entries[i].Linkname = strings.Replace(c.entries[i].Linkname, "VICTIM", victim, 1)
			}
			_, err := unpack.Layer(t.Context(), root, bytes.NewReader(layer(t, c.entries...)), unpack.Limits{}, nil)
			if c.want == nil && err != nil || c.want != nil && !c.want(err) {
				t.Errorf("error %v", err)
			}
			if after := describe(t, victim); fmt.Sprint(after) != fmt.Sprint(before) {
				t.Errorf("the victim was %v, is %v", before, after)
			}
			if names, _ := os.ReadDir(base); len(names) != 2 {
				t.Errorf("beside the layer there is %v", names)
			}
			for name, what := range describe(t, root) {
				if strings.Contains(what, "overlay.redirect") || strings.Contains(what, "innocent") {
					t.Errorf("%s: %s", name, what)
				}
			}
		})
	}
}

func redirect() labimage.Entry {
	e := labimage.Dir("d", 0o755)
	e.PAXRecords = map[string]string{"SCHILY.xattr.trusted.overlay.redirect": "/etc"}
	return e
}

func TestSparseFilesStaySparse(t *testing.T) {
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{0, 3 << 20, 9<<20 + 100} {
		if _, err = f.WriteAt([]byte("data"), off); err != nil {
			t.Fatal(err)
		}
	}
	if err = errors.Join(f.Truncate(16<<20), f.Close()); err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"gnu", "posix"} {
		var data, got []byte
		data, err = exec.CommandContext(t.Context(), "tar", "-c", "--sparse", "--format="+format, "-C", dir, "sparse").Output()
		if err != nil {
			t.Fatal(err)
		}
		root := t.TempDir()
		if _, err = unpack.Layer(t.Context(), root, bytes.NewReader(data), unpack.Limits{}, nil); err != nil {
			t.Fatal(err)
		}
		got, err = os.ReadFile(filepath.Join(root, "sparse"))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: content differs, %v", format, err)
		}
		var st unix.Stat_t
		if err = unix.Stat(filepath.Join(root, "sparse"), &st); err != nil || st.Blocks*512 > 1<<20 {
			t.Errorf("%s: the file takes %d bytes, %v", format, st.Blocks*512, err)
		}
	}
}

func TestHugeHoleIsRefused(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "huge"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(dir, "huge"), 1<<40); err != nil {
		t.Fatal(err)
	}
	data, err := exec.CommandContext(t.Context(), "tar", "-c", "--sparse", "-C", dir, "huge").Output()
	if err != nil {
		t.Fatal(err)
	}
	_, err = unpack.Layer(t.Context(), t.TempDir(), bytes.NewReader(data), unpack.Limits{Bytes: 1 << 30}, nil)
	if !errdefs.IsResourceExhausted(err) {
		t.Errorf("error %v", err)
	}
}

func TestWhatALayerDoesNotDescribeIsTold(t *testing.T) {
	data := layer(t, labimage.File("a/b/c", 0o644, "x"), labimage.Dir("a", 0o700), labimage.Symlink("l", "far/away"),
		labimage.File("l/x", 0o644, "x"), labimage.File("gone/x/y", 0o644, "x"), labimage.File("gone", 0o644, "x"))
	sum, err := unpack.Layer(t.Context(), t.TempDir(), bytes.NewReader(data), unpack.Limits{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(sum.Implicit, " "); got != "a/b far far/away" || sum.Root || sum.Entries != 6 {
		t.Errorf("summary %+v", sum)
	}
}

func TestBrokenStreams(t *testing.T) {
	whole := layer(t, labimage.File("a", 0o644, strings.Repeat("x", 2000)), labimage.File("b", 0o644, "y"))
	broken := errors.New("the network is gone")
	for name, c := range map[string]struct {
		r    io.Reader
		want func(error) bool
	}{
		"cut in a header":  {bytes.NewReader(whole[:300]), errdefs.IsInvalidArgument},
		"cut in a content": {bytes.NewReader(whole[:1300]), errdefs.IsInvalidArgument},
		"no tar":           {strings.NewReader(strings.Repeat("not a tar. ", 200)), errdefs.IsInvalidArgument},
		"an error in a content comes through": {io.MultiReader(bytes.NewReader(whole[:1300]), failing{broken}),
			func(err error) bool { return errors.Is(err, broken) }},
		"an error between entries comes through": {io.MultiReader(bytes.NewReader(whole[:len(whole)-1024]), failing{broken}),
			func(err error) bool { return errors.Is(err, broken) }},
	} {
		if _, err := unpack.Layer(t.Context(), t.TempDir(), c.r, unpack.Limits{}, nil); !c.want(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := unpack.Layer(ctx, t.TempDir(), bytes.NewReader(whole), unpack.Limits{}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func FuzzLayer(f *testing.F) {
	for _, entries := range [][]labimage.Entry{
		odd(), {labimage.Symlink("l", "../victim"), labimage.File("l/file", 0o644, "evil")},
		{labimage.Whiteout("a"), labimage.Opaque("b"), labimage.Link("c", "d")},
	} {
		data, err := labimage.Tar(entries...)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		base := t.TempDir()
		root := filepath.Join(base, "layer")
		if err := os.Mkdir(root, 0o755); err != nil {
			t.Fatal(err)
		}
		_, _ = unpack.Layer(t.Context(), root, bytes.NewReader(data), unpack.Limits{Bytes: 1 << 20, Entries: 1000}, nil)
		if names, err := os.ReadDir(base); err != nil || len(names) != 1 {
			t.Errorf("beside the layer there is %v, %v", names, err)
		}
	})
}
