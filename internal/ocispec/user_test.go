package ocispec_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"gantry/internal/ocispec"
	"gantry/internal/pod"
)

func ptr[T any](v T) *T { return &v }

func rootfs(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestFindUser(t *testing.T) {
	image := rootfs(t, map[string]string{
		"etc/passwd": "root:x:0:0::/root:/bin/sh\n# a comment\nweb:x:1000:2000::/srv:/bin/sh\nbroken\n",
		"etc/group":  "root:x:0:\nweb:x:2000:\naudio:x:29:web,other\nroots:x:77:root\n",
	})
	tests := map[string]struct {
		image    string
		security pod.Security
		want     ocispec.User
	}{
		"nobody said: root with its groups":       {want: ocispec.User{Groups: []uint32{0, 77}}},
		"the image's name":                        {image: "web", want: ocispec.User{UID: 1000, GID: 2000, Groups: []uint32{2000, 29}}},
		"the image's id knows its account":        {image: "1000", want: ocispec.User{UID: 1000, GID: 2000, Groups: []uint32{2000, 29}}},
		"the image's user and group by name":      {image: "web:audio", want: ocispec.User{UID: 1000, GID: 29, Groups: []uint32{29}}},
		"the image's ids, unknown to passwd":      {image: "5:6", want: ocispec.User{UID: 5, GID: 6, Groups: []uint32{6}}},
		"an unknown id has group 0":               {image: "5", want: ocispec.User{UID: 5, Groups: []uint32{0}}},
		"run_as_user ignores the image's group":   {image: "web:audio", security: pod.Security{RunAsUser: ptr[int64](1000)}, want: ocispec.User{UID: 1000, GID: 2000, Groups: []uint32{2000, 29}}},
		"run_as_username":                         {security: pod.Security{RunAsUsername: "web"}, want: ocispec.User{UID: 1000, GID: 2000, Groups: []uint32{2000, 29}}},
		"run_as_group":                            {security: pod.Security{RunAsUser: ptr[int64](7), RunAsGroup: ptr[int64](8)}, want: ocispec.User{UID: 7, GID: 8, Groups: []uint32{8}}},
		"supplemental groups are merged":          {image: "web", security: pod.Security{SupplementalGroups: []int64{5, 29}}, want: ocispec.User{UID: 1000, GID: 2000, Groups: []uint32{2000, 29, 5}}},
		"strict leaves out the image's own":       {image: "web", security: pod.Security{StrictGroups: true, SupplementalGroups: []int64{5}}, want: ocispec.User{UID: 1000, GID: 2000, Groups: []uint32{2000, 5}}},
		"run_as_user 0 is root, not nothing said": {image: "web", security: pod.Security{RunAsUser: ptr[int64](0)}, want: ocispec.User{Groups: []uint32{0, 77}}},
	}
	for rule, tt := range tests {
		t.Run(rule, func(t *testing.T) {
			got, err := ocispec.FindUser(image, &tt.security, tt.image)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestUsersThatAreRefused(t *testing.T) {
	tests := map[string]struct {
		image    string
		security pod.Security
		names    string
	}{
		"unknown name":              {image: "nobody", names: "nobody"},
		"unknown group":             {image: "0:wheel", names: "wheel"},
		"unknown run_as_username":   {security: pod.Security{RunAsUsername: "ghost"}, names: "ghost"},
		"run_as_group alone":        {security: pod.Security{RunAsGroup: ptr[int64](5)}, names: "run_as_group"},
		"negative id":               {security: pod.Security{RunAsUser: ptr[int64](-1)}, names: "-1"},
		"supplemental group is big": {security: pod.Security{SupplementalGroups: []int64{1 << 40}}, names: "supplemental_groups"},
	}
	for rule, tt := range tests {
		t.Run(rule, func(t *testing.T) {
			u, err := ocispec.FindUser(rootfs(t, nil), &tt.security, tt.image)
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tt.names) {
				t.Errorf("user %+v, error %v", u, err)
			}
		})
	}
}

func TestLinksStayInTheImage(t *testing.T) {
	image := rootfs(t, map[string]string{"accounts": "web:x:1000:2000::/:/bin/sh\n"})
	for rule, target := range map[string]string{
		"absolute":             "/accounts",
		"climbs above the top": "../../../../accounts",
	} {
		t.Run(rule, func(t *testing.T) {
			link := filepath.Join(image, "etc/passwd")
			_ = os.Remove(link)
			if err := os.Symlink(target, link); err != nil {
				t.Fatal(err)
			}
			u, err := ocispec.FindUser(image, &pod.Security{}, "web")
			if err != nil || u.UID != 1000 {
				t.Errorf("user %+v, %v", u, err)
			}
		})
	}
	outside := rootfs(t, nil)
	if err := os.Symlink("/etc/passwd", filepath.Join(outside, "etc/passwd")); err != nil {
		t.Fatal(err)
	}
	if _, err := ocispec.FindUser(outside, &pod.Security{}, "daemon"); err == nil {
		t.Error("the node's passwd was read")
	}
}

func TestMakeDirsStaysInTheRoot(t *testing.T) {
	image := rootfs(t, nil)
	target := filepath.Join(t.TempDir(), "outside")
	if err := os.Symlink(target, filepath.Join(image, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(image, "run"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/run", filepath.Join(image, "etc/run")); err != nil {
		t.Fatal(err)
	}
	owner := ocispec.Owner{UID: os.Geteuid(), GID: os.Getegid()}
	for range 2 {
		if err := ocispec.MakeDirs(image, owner, "/data/deep", "srv", "/", "/etc/run/web"); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"data/deep", "srv", "run/web"} {
		if st, err := os.Stat(filepath.Join(image, dir)); err != nil || !st.IsDir() {
			t.Errorf("%s: %v", dir, err)
		}
	}
	if err := ocispec.MakeDirs(image, owner, "/link/data"); err == nil {
		t.Error("made a directory behind a dangling link")
	}
	if _, err := os.Lstat(target); err == nil {
		t.Error("made a directory outside the root file system")
	}
}

// An image brings its own accounts: whatever they are, a user is found or refused.
func FuzzFindUser(f *testing.F) {
	f.Add("root:x:0:0::/root:/bin/sh\nweb:x:1000:2000::/:\n", "web:x:2000:root,web\n", "web:web")
	f.Add(":::\n:x:4294967296:-1:\n", "::99999999999:,,,\n", ":")
	dir := f.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, passwd, group, user string) {
		for name, content := range map[string]string{"etc/passwd": passwd, "etc/group": group} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		u, err := ocispec.FindUser(dir, &pod.Security{}, user)
		if err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("user %q: %v", user, err)
		}
		if err == nil && (len(u.Groups) == 0 || u.Groups[0] != u.GID) {
			t.Errorf("user %q: the primary group is not the first of %v", user, u.Groups)
		}
	})
}

func TestBelowNeverLeadsOutside(t *testing.T) {
	image := t.TempDir()
	for _, err := range []error{
		os.MkdirAll(filepath.Join(image, "data/deep"), 0o755), os.WriteFile(filepath.Join(image, "data/file"), nil, 0o600),
		os.Symlink("/data", filepath.Join(image, "absolute")), os.Symlink("../../../data/deep", filepath.Join(image, "up")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{
		"": "", "data/file": "data/file", "absolute/deep": "data/deep", "up": "data/deep", "../..": "",
	} {
		if got, err := ocispec.Below(image, name); err != nil || got != filepath.Join(image, want) {
			t.Errorf("Below(%q) = %q, %v", name, got, err)
		}
	}
	for _, name := range []string{"absent", "data/file/x"} {
		if got, err := ocispec.Below(image, name); !errdefs.IsInvalidArgument(err) {
			t.Errorf("Below(%q) = %q, %v", name, got, err)
		}
	}
}
