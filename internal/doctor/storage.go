package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"gantry/internal/projquota"
)

// checkOverlay mounts an overlay in a temporary directory on the file system of the root directory.
func checkOverlay(_ context.Context, n *node) []Finding {
	base := existing(n.Config.Root)
	dir, err := os.MkdirTemp(base, ".gantry-doctor-")
	if err != nil {
		return one(Fail, "root: "+err.Error(), "choose another --root")
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := tryOverlay(dir); err != nil {
		mend := "use ext4 or xfs (mkfs.xfs -n ftype=1) for " + n.Config.Root
		if errors.Is(err, unix.ENODEV) {
			mend = "modprobe overlay"
		}
		return one(Fail, fmt.Sprintf("overlayfs does not work on %s: %v", base, err), mend)
	}
	return one(OK, fmt.Sprintf("overlayfs works on %s", base), "")
}

func tryOverlay(dir string) (err error) {
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, d := range []string{"lower", "upper", "work", "merged"} {
		if err = os.Mkdir(at(d), 0o700); err != nil {
			return err
		}
	}
	if err = os.WriteFile(at("lower/file"), []byte("lower"), 0o600); err != nil {
		return err
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", at("lower"), at("upper"), at("work"))
	if err = unix.Mount("overlay", at("merged"), "overlay", unix.MS_NODEV, options); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Unmount(at("merged"), unix.MNT_DETACH)) }()
	if err = os.WriteFile(at("merged/file"), []byte("upper"), 0o600); err != nil {
		return err
	}
	if _, err = os.Stat(at("upper/file")); err != nil {
		return fmt.Errorf("what was written did not reach the upper layer: %w", err)
	}
	return nil
}

// checkQuotas says how what containers write is measured.
func checkQuotas(_ context.Context, n *node) []Finding {
	const walks = "what containers write is measured by walks of their files: "
	ids, err := projquota.ParseRange(n.Config.Images.Projects)
	if err != nil {
		return one(Fail, "images.project_ids: "+err.Error(), "write FIRST-LAST, or nothing")
	}
	if ids == (projquota.Range{}) {
		return one(OK, walks+"images.project_ids is empty", "")
	}
	base := existing(n.Config.Root)
	fs, err := projquota.Open(base, ids)
	if err != nil {
		return one(OK, walks+err.Error(), "mount the file system of "+base+" with prjquota to have it counted")
	}
	_ = fs.Close()
	return one(OK, fmt.Sprintf("what containers write is counted by the project quotas of %s, ids %s", base, ids), "")
}

// existing is the nearest ancestor of dir, or dir itself, that is there.
func existing(dir string) string {
	for {
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) || dir == filepath.Dir(dir) {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

func checkState(_ context.Context, n *node) []Finding {
	base := existing(n.Config.State)
	var st unix.Statfs_t
	if err := unix.Statfs(base, &st); err != nil {
		return one(Fail, fmt.Sprintf("%s: %v", base, err), "choose another --state")
	}
	if st.Type != unix.TMPFS_MAGIC {
		return one(OK, fmt.Sprintf("%s is not on tmpfs: the server mounts a small one of its own there", n.Config.State), "")
	}
	return one(OK, n.Config.State+" is on tmpfs", "")
}
