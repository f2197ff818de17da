package ocispec

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"gantry/internal/pod"
)

// maxAccounts bounds what is read of a container's passwd and group files, in bytes.
const maxAccounts = 8 << 20

// User is who a container's main process runs as.
type User struct {
	UID    uint32
	GID    uint32
	Groups []uint32 // supplemental, the primary one among them
}

func (u User) oci() specs.User {
	return specs.User{UID: u.UID, GID: u.GID, AdditionalGids: u.Groups}
}

// FindUser decides who runs in the root file system: what the client says, else imageUser ("", a
// name or id, with ":" and a group after it where the image gives one). Names are looked up in the
// container's own /etc/passwd and /etc/group; links in it never lead outside rootfs.
func FindUser(rootfs string, s *pod.Security, imageUser string) (User, error) {
	if s.RunAsGroup != nil && s.RunAsUser == nil && s.RunAsUsername == "" {
		return User{}, fmt.Errorf("run_as_group needs run_as_user or run_as_username: %w", errdefs.ErrInvalidArgument)
	}
	name, group, _ := strings.Cut(imageUser, ":")
	if s.RunAsUser != nil {
		name, group = strconv.FormatInt(*s.RunAsUser, 10), ""
	} else if s.RunAsUsername != "" {
		name, group = s.RunAsUsername, ""
	}
	if s.RunAsGroup != nil {
		group = strconv.FormatInt(*s.RunAsGroup, 10)
	}
	passwd, err := readAccounts(rootfs, "/etc/passwd")
	if err != nil {
		return User{}, err
	}
	groups, err := readAccounts(rootfs, "/etc/group")
	if err != nil {
		return User{}, err
	}
	account, err := findAccount(passwd, name)
	if err != nil {
		return User{}, err
	}
	u := User{UID: account.uid, GID: account.gid}
	if group != "" {
		if u.GID, err = findGroup(groups, group); err != nil {
			return User{}, err
		}
	}
	u.Groups, err = supplemental(u.GID, account.name, groups, s)
	return u, err
}

// supplemental lists the primary group, those of the image where the client allows them, and those
// that the client gives, each once.
func supplemental(primary uint32, name string, groups [][]string, s *pod.Security) ([]uint32, error) {
	all := []uint32{primary}
	if !s.StrictGroups && name != "" {
		for _, g := range groups {
			if len(g) < 4 || !slices.Contains(strings.Split(g[3], ","), name) {
				continue
			}
			if gid, ok := parseID(g[2]); ok {
				all = append(all, gid)
			}
		}
	}
	for _, g := range s.SupplementalGroups {
		if g < 0 || g > math.MaxUint32 {
			return nil, fmt.Errorf("supplemental_groups: %d is not an id: %w", g, errdefs.ErrInvalidArgument)
		}
		all = append(all, uint32(g))
	}
	return last(all, func(g uint32) uint32 { return g }), nil
}

type account struct {
	name     string // "" when passwd has none for the id
	uid, gid uint32
}

// findAccount looks name up, as a name first and then as an id. An id that passwd does not know has
// group 0, as every runtime does it.
func findAccount(passwd [][]string, name string) (account, error) {
	if name == "" {
		name = "0"
	}
	id, numeric := parseID(name)
	for byName := range 2 {
		for _, f := range passwd {
			if len(f) < 4 {
				continue
			}
			uid, ok := parseID(f[2])
			gid, ok2 := parseID(f[3])
			if ok && ok2 && (byName == 0 && f[0] == name || byName == 1 && numeric && uid == id) {
				return account{name: f[0], uid: uid, gid: gid}, nil
			}
		}
	}
	if !numeric {
		return account{}, fmt.Errorf("user %q is not in the image's /etc/passwd: %w", name, errdefs.ErrInvalidArgument)
	}
	return account{uid: id}, nil
}

func findGroup(groups [][]string, name string) (uint32, error) {
	for _, f := range groups {
		if len(f) >= 3 && f[0] == name {
			if gid, ok := parseID(f[2]); ok {
				return gid, nil
			}
		}
	}
	gid, ok := parseID(name)
	if !ok {
		return 0, fmt.Errorf("group %q is not in the image's /etc/group: %w", name, errdefs.ErrInvalidArgument)
	}
	return gid, nil
}

func parseID(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil
}

// readAccounts splits a passwd or group file into fields. An image without the file is fine.
func readAccounts(rootfs, name string) ([][]string, error) {
	f, err := openIn(rootfs, name)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s of the image: %w", name, err)
	}
	defer func() { _ = f.Close() }()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, nil
	}
	var all [][]string
	lines := bufio.NewScanner(io.LimitReader(f, maxAccounts))
	lines.Buffer(nil, maxAccounts)
	for lines.Scan() {
		line := bytes.TrimSpace(lines.Bytes())
		if len(line) > 0 && line[0] != '#' {
			all = append(all, strings.Split(string(line), ":"))
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read %s of the image: %w", name, err)
	}
	return all, nil
}

// openIn opens a file as a process that has changed its root to rootfs would.
func openIn(rootfs, name string) (*os.File, error) {
	root, err := unix.Open(rootfs, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(root) }()
	fd, err := unix.Openat2(root, name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_NONBLOCK | unix.O_CLOEXEC | unix.O_NOCTTY,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}
