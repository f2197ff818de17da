package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Logs says what containers write to their logs.
type Logs struct {
	Pods
	Bytes      int64 // of all containers together
	Line       int   // bytes of a line, its newline included
	Containers int
	Dir        string        // for the file of lines; containers get it mounted
	Timeout    time.Duration // for the last line to appear
}

// lastLine ends what a container writes.
const lastLine = "this was the last line"

// Log lets containers write a file of lines to their output and adds how long it took from their start
// until the last line of each was in its log file, and the CPU time of everything, the writing
// processes included.
func (t *Target) Log(ctx context.Context, l *Logs, to Scope) (err error) {
	lines, err := l.write()
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(lines) }()
	ctx, cancel := context.WithTimeout(ctx, l.Timeout)
	defer cancel()
	var pods []made
	defer func() {
		err = errors.Join(err, t.disperse(context.WithoutCancel(ctx), pods))
		for _, m := range pods {
			_ = os.Remove(m.logPath)
		}
	}()
	mount := &cri.Mount{HostPath: lines, ContainerPath: "/lines", Readonly: true}
	for range l.Containers {
		m, failed := t.hold(ctx, &l.Pods, l.container([]string{"cat", "/lines"}, mount), untimed)
		if m.sandbox != "" {
			pods = append(pods, m)
		}
		if failed != nil {
			return failed
		}
	}
	before, err := t.cpu()
	if err != nil {
		return err
	}
	began := time.Now()
	var g errgroup.Group
	for _, m := range pods {
		g.Go(func() error {
			if _, failed := t.Runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: m.container}); failed != nil {
				return fmt.Errorf("%s: StartContainer: %w", t.Name, failed)
			}
			return awaitLine(ctx, m.logPath, lastLine)
		})
	}
	if err = g.Wait(); err != nil {
		return err
	}
	to.Add("until the last line", "s", time.Since(began).Seconds())
	if t.Cgroup == nil {
		return nil
	}
	after, err := t.cpu()
	to.Add("CPU time", "s", (after - before).Seconds())
	return err
}

// write makes the file that each container writes.
func (l *Logs) write() (string, error) {
	f, err := os.CreateTemp(l.Dir, "lines")
	if err != nil {
		return "", fmt.Errorf("lines to log: %w", err)
	}
	line := []byte(strings.Repeat("x", l.Line-1) + "\n")
	block := bytes.Repeat(line, max(1, 1<<20/len(line)))
	for left := l.Bytes / int64(l.Containers); left > 0 && err == nil; left -= int64(len(block)) {
		_, err = f.Write(block[:min(int64(len(block)), (left+int64(l.Line)-1)/int64(l.Line)*int64(l.Line))])
	}
	if err == nil {
		_, err = io.WriteString(f, lastLine+"\n")
	}
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		_ = os.Remove(f.Name())
		return "", fmt.Errorf("lines to log: %w", err)
	}
	return f.Name(), nil
}

// logLook is how often a log's end is looked at: what the kernel could tell of a file that grows would
// cost more than looking.
const logLook = 2 * time.Millisecond

// awaitLine waits until a line is the last in a log.
func awaitLine(ctx context.Context, path, line string) error {
	tick := time.NewTicker(logLook)
	defer tick.Stop()
	end := make([]byte, len(line)+1)
	for {
		if f, err := os.Open(path); err == nil {
			_, _ = f.Seek(int64(-len(end)), io.SeekEnd) // a file that is shorter is read whole
			n, _ := io.ReadFull(f, end)
			_ = f.Close()
			if string(end[:n]) == line+"\n" {
				return nil
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("the line %q of %s: %w", line, path, ctx.Err())
		}
	}
}
