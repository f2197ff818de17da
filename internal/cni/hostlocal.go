package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"golang.org/x/sys/unix"
)

// The host-local plugin keeps a lease as a file that has the address's name and the container id in its first line
// (containernetworking/plugins, plugins/ipam/host-local/backend/disk). It makes the file, and then writes
// it, with a lock on the file "lock" beside it. Killed between the two, it leaves a lease that names nobody: no DEL
// ever finds it.

// hostLocalDir is where the leases are unless the plugin's configuration says otherwise.
const hostLocalDir = "/var/lib/cni/networks"

// leaseDirs are where the host-local plugins of a list keep their leases.
func leaseDirs(list *libcni.NetworkConfigList) []string {
	var dirs []string
	for _, p := range list.Plugins {
		var conf struct {
			IPAM struct {
				Type    string `json:"type"`
				DataDir string `json:"dataDir"`
			} `json:"ipam"`
		}
		if json.Unmarshal(p.Bytes, &conf) != nil || conf.IPAM.Type != "host-local" {
			continue
		}
		if conf.IPAM.DataDir == "" {
			conf.IPAM.DataDir = hostLocalDir
		}
		dirs = append(dirs, filepath.Join(conf.IPAM.DataDir, list.Name))
	}
	return dirs
}

// freeHostLocal removes the leases that host-local has written for the ids.
func freeHostLocal(list *libcni.NetworkConfigList, ids map[string]struct{}) error {
	if len(ids) == 0 {
		return nil
	}
	var errs []error
	for _, dir := range leaseDirs(list) {
		err := removeLeases(dir, func(lease string) bool {
			id, _, _ := strings.Cut(lease, "\n")
			_, ours := ids[strings.TrimSpace(id)]
			return ours
		})
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// sweepHostLocal removes the leases that name nobody. With the lock taken no plugin is about to write one.
func sweepHostLocal(ctx context.Context, list *libcni.NetworkConfigList) error {
	var errs []error
	for _, dir := range leaseDirs(list) {
		empty := false
		err := removeLeases(dir, func(lease string) bool { empty = empty || lease == ""; return false })
		if err == nil && empty {
			err = sweepLeases(ctx, dir)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func sweepLeases(ctx context.Context, dir string) error {
	lock, err := os.Open(filepath.Join(dir, "lock"))
	if errors.Is(err, os.ErrNotExist) { // host-local never was here
		return nil
	}
	if err != nil {
		return fmt.Errorf("lock of host-local: %w", err)
	}
	defer func() { _ = lock.Close() }()
	if err := takeLock(ctx, lock); err != nil {
		return err
	}
	return removeLeases(dir, func(lease string) bool { return lease == "" })
}

// lockLimit is how long host-local, which holds the lock for milliseconds, may keep it.
const lockLimit = 5 * time.Second

func takeLock(ctx context.Context, lock *os.File) error {
	ctx, cancel := context.WithTimeout(ctx, lockLimit)
	defer cancel()
	for {
		err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("lock of host-local: %w", err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("lock %s of host-local is taken: %w", lock.Name(), errdefs.ErrUnavailable)
		case <-time.After(5 * time.Millisecond): // a lock with a deadline does not exist
		}
	}
}

// removeLeases removes the leases whose text is to go.
func removeLeases(dir string, goes func(lease string) bool) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("host-local leases: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if _, err := netip.ParseAddr(e.Name()); err != nil {
			continue
		}
		path := filepath.Join(dir, e.Name())
		data, err := os.ReadFile(path)
		if err == nil && goes(string(data)) {
			errs = append(errs, os.Remove(path))
		}
	}
	return errors.Join(errs...)
}
