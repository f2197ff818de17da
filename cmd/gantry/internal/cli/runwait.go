package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"

	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/cmd/gantry/internal/logs"
	"gantry/cmd/gantry/internal/manifest"
)

// tails are the containers that are waited for, with their logs on the way to the user.
type tails struct {
	wg      sync.WaitGroup
	results []<-chan result // of the containers that count
	mu      sync.Mutex      // guards the user's output and errs
	errs    []error
}

// result is how one container ended.
type result struct {
	name   string
	status *v1.ContainerStatus
	err    error
}

// wait waits until every log was printed to its end.
func (t *tails) wait() error {
	t.wg.Wait()
	t.mu.Lock()
	defer t.mu.Unlock()
	err := errors.Join(t.errs...)
	t.errs = nil
	return err
}

// follow prints the container's log and waits for its end, in the background.
func (r *runner) follow(ctx context.Context, c manifest.Container, id string, counts bool) {
	// An interrupt ends the wait, not the printing: what the container writes while it is stopped
	// is printed too.
	bg := context.WithoutCancel(ctx)
	name := c.Config.Metadata.Name
	over := make(chan struct{})
	done := make(chan result, 1)
	r.tails.wg.Go(func() {
		defer close(over)
		st, err := waitEnd(bg, r.client, id)
		done <- result{name, st, err}
	})
	if counts {
		r.tails.results = append(r.tails.results, done)
	}
	if r.opts.quiet {
		return
	}
	path := filepath.Join(r.pod.Sandbox.LogDirectory, c.Config.LogPath)
	r.tails.wg.Go(func() {
		out, errOut := r.printer(r.out, name), r.printer(r.err, name)
		err := logs.Read(bg, path, logs.Options{Tail: -1, Ended: over}, out, errOut)
		if err = errors.Join(err, out.flush(), errOut.flush()); err != nil {
			r.tails.mu.Lock()
			r.tails.errs = append(r.tails.errs, fmt.Errorf("log of %s: %w", name, err))
			r.tails.mu.Unlock()
		}
	})
}

// printer puts the container's name before its lines where there are several containers.
func (r *runner) printer(w io.Writer, name string) *prefixer {
	p := &prefixer{mu: &r.tails.mu, w: w}
	if len(r.pod.Init)+len(r.pod.Containers) > 1 {
		p.prefix = "[" + name + "] "
	}
	return p
}

// attend waits for the containers and returns the exit code of the one that failed first.
func (r *runner) attend(ctx context.Context) error {
	var first *v1.ContainerStatus
	for _, done := range r.tails.results {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case res := <-done:
			if res.err != nil {
				return res.err
			}
			if res.status.ExitCode != 0 && (first == nil || res.status.FinishedAt < first.FinishedAt) {
				first = res.status
			}
		}
	}
	if first != nil {
		return exitCode(first.ExitCode)
	}
	return nil
}
