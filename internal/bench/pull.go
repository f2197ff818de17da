package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The metrics of a pull.
const (
	PullTime   = "until every image is there"
	PullCPU    = "CPU time"
	PullMemory = "memory at most"
)

// Pull pulls images that the runtime does not have, all at once, and removes them again. It adds how long
// it took until the last call returned and, where the cgroup is known, the CPU time of everything the
// runtime ran and the sum of the largest resident sets of its processes meanwhile, but for those that have
// ended.
func (t *Target) Pull(ctx context.Context, refs []string, to Scope) error {
	unix.Sync() // what others wrote is not this pull's to write
	if err := t.reset(); err != nil {
		return err
	}
	before, err := t.cpu()
	if err != nil {
		return err
	}
	began := time.Now()
	g, gctx := errgroup.WithContext(ctx)
	for _, ref := range refs {
		g.Go(func() error {
			if _, failed := t.Images.PullImage(gctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}}); failed != nil {
				return fmt.Errorf("%s: pull %s: %w", t.Name, ref, failed)
			}
			return nil
		})
	}
	err = g.Wait()
	took := time.Since(began)
	if err == nil {
		to.Add(PullTime, "s", took.Seconds())
		err = t.pulled(before, to)
	}
	for _, ref := range refs {
		spec := &cri.ImageSpec{Image: ref}
		if _, failed := t.Images.RemoveImage(context.WithoutCancel(ctx), &cri.RemoveImageRequest{Image: spec}); failed != nil {
			err = errors.Join(err, fmt.Errorf("%s: remove %s: %w", t.Name, ref, failed))
		}
	}
	return err
}

// pulled adds what a pull needed.
func (t *Target) pulled(before time.Duration, to Scope) error {
	if t.Cgroup == nil {
		return nil
	}
	after, err := t.cpu()
	if err != nil {
		return err
	}
	to.Add(PullCPU, "s", (after - before).Seconds())
	most, err := t.sum("VmHWM")
	to.Add(PullMemory, "MiB RSS", float64(most)/1024)
	return err
}

// reset makes the kernel forget how much memory the runtime's processes once had.
func (t *Target) reset() error {
	if t.Cgroup == nil {
		return nil
	}
	pids, err := t.own()
	for _, pid := range pids {
		// 5 resets the largest resident set: proc_pid_clear_refs(5). A process may have ended.
		_ = os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0)
	}
	return err
}

// sum adds up a line of the status of the runtime's processes, in KiB.
func (t *Target) sum(key string) (total int64, err error) {
	pids, err := t.own()
	if err != nil {
		return 0, err
	}
	for _, pid := range pids {
		data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)) // it may have ended
		for line := range strings.Lines(string(data)) {
			name, value, _ := strings.Cut(line, ":")
			if name != key {
				continue
			}
			n, bad := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			if bad != nil {
				return 0, fmt.Errorf("%s of process %d: %w", key, pid, bad)
			}
			total += n
		}
	}
	return total, nil
}
