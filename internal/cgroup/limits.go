package cgroup

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"gantry/internal/pod"
)

// SetLimits writes CPU and memory limits to a cgroup that exists; fields that are zero are left as
// they are. It is for the cgroup of a pod; those of containers are the OCI runtime's.
func (f *FS) SetLimits(cgroup string, r *pod.Resources) error {
	if err := check(cgroup); err != nil {
		return err
	}
	if !f.Exists(cgroup) {
		return fmt.Errorf("cgroup %s: %w", cgroup, errdefs.ErrNotFound)
	}
	var errs []error
	for _, s := range f.settings(r) {
		if err := writeExisting(filepath.Join(s.hierarchy, cgroup, s.file), s.value); err != nil {
			errs = append(errs, fmt.Errorf("limit cgroup %s: %w", cgroup, err))
		}
	}
	return errors.Join(errs...)
}

// Write writes files of a cgroup of the v2 hierarchy, by their names. A cgroup that is not there is
// errdefs.ErrNotFound, a file that the kernel lacks or a value that it refuses errdefs.ErrInvalidArgument.
func (f *FS) Write(cgroup string, files map[string]string) error {
	if err := check(cgroup); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		err := writeExisting(filepath.Join(f.unified, cgroup, name), files[name])
		switch {
		case err == nil:
		case f.unified == "" || !exists(filepath.Join(f.unified, cgroup)):
			return fmt.Errorf("cgroup %s: %w", cgroup, errdefs.ErrNotFound)
		default:
			return fmt.Errorf("%s of cgroup %s is not %s: %w: %w", name, cgroup, files[name], errdefs.ErrInvalidArgument, err)
		}
	}
	return nil
}

// Value is what the kernel says is in a file of a cgroup of the v2 hierarchy, without spaces around it; "" where
// there is none.
func (f *FS) Value(cgroup, name string) string {
	if f.unified == "" || check(cgroup) != nil {
		return ""
	}
	data, _ := os.ReadFile(filepath.Join(f.unified, cgroup, name))
	return strings.TrimSpace(string(data))
}

// setting is one value for one file.
type setting struct{ hierarchy, file, value string }

func (f *FS) settings(r *pod.Resources) []setting {
	var all []setting
	set := func(hierarchy, file, value string) {
		all = append(all, setting{hierarchy, file, value})
	}
	period := r.CPUPeriod
	if period == 0 {
		period = 100_000 // the kernel's default
	}
	if f.mode == V2 {
		if r.CPUQuota != 0 {
			set(f.unified, "cpu.max", quotaV2(r.CPUQuota)+" "+itoa(period))
		}
		if r.CPUShares != 0 {
			set(f.unified, "cpu.weight", itoa(Weight(r.CPUShares)))
		}
		if r.MemoryLimit != 0 {
			set(f.unified, "memory.max", itoa(r.MemoryLimit))
		}
		return all
	}
	if r.CPUQuota != 0 {
		set(f.controllers["cpu"], "cpu.cfs_period_us", itoa(period))
		set(f.controllers["cpu"], "cpu.cfs_quota_us", itoa(r.CPUQuota))
	}
	if r.CPUShares != 0 {
		set(f.controllers["cpu"], "cpu.shares", itoa(r.CPUShares))
	}
	if r.MemoryLimit != 0 {
		set(f.controllers["memory"], "memory.limit_in_bytes", itoa(r.MemoryLimit))
	}
	return all
}

// Weight converts v1 CPU shares, 2 to 262144, to a v2 weight, 1 to 10000, linearly as the kubelet does.
func Weight(shares int64) int64 {
	shares = min(max(shares, 2), 262144)
	return 1 + (shares-2)*9999/262142
}

func quotaV2(quota int64) string {
	if quota < 0 {
		return "max"
	}
	return itoa(quota)
}

func itoa(n int64) string { return strconv.FormatInt(n, 10) }
