package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Logs says what containers write to their logs.
type Logs struct {
	Pods
	Bytes      int64         // of all containers together
	Line       int           // bytes of a line, its newline included
	Containers int           // all in one pod
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
	containers, err := t.writers(ctx, l, &cri.Mount{HostPath: lines, ContainerPath: "/lines", Readonly: true})
	defer func() {
		if len(containers) > 0 && containers[0].sandbox != "" {
			err = errors.Join(err, t.remove(context.WithoutCancel(ctx), containers[0].sandbox))
		}
		for _, m := range containers {
			_ = os.Remove(m.logPath)
		}
	}()
	if err != nil {
		return err
	}
	before, err := t.cpu()
	if err != nil {
		return err
	}
	began := time.Now()
	var g errgroup.Group
	for _, m := range containers {
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

// writers makes the containers, all in one pod, and starts none of them. What it returns with an error is
// to be removed as well.
func (t *Target) writers(ctx context.Context, l *Logs, mount *cri.Mount) ([]made, error) {
	config := l.container([]string{"cat", "/lines"}, mount)
	first, err := t.hold(ctx, &l.Pods, config, untimed)
	all := []made{first}
	for i := 1; i < l.Containers && err == nil; i++ {
		config.Metadata.Name = fmt.Sprintf("main%d", i)
		config.LogPath = config.Metadata.Name + "_0.log"
		m := made{sandbox: first.sandbox, config: first.config, logPath: filepath.Join(first.config.LogDirectory, config.LogPath)}
		var r *cri.CreateContainerResponse
		r, err = t.Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: m.sandbox, Config: config, SandboxConfig: m.config})
		if err != nil {
			err = fmt.Errorf("%s: CreateContainer: %w", t.Name, err)
		}
		m.container = r.GetContainerId()
		all = append(all, m)
	}
	return all, err
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
