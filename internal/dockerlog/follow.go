package dockerlog

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"gantry/internal/atomicfile"
	"gantry/internal/crilog"
	"gantry/internal/pod"
)

// follower writes one container's log from Docker's API.
type follower struct {
	l   *Logs
	key pod.Key
	id  string

	cancel context.CancelFunc
	ctx    context.Context // ends with stop
	done   chan struct{}   // closed when run has returned

	mu   sync.Mutex
	file *os.File // guarded by mu; nil while the log can't be opened
	saved
}

// saved is a follower's record: where the log is, and how far files before the present one have come.
type saved struct {
	Path string   `json:"path"`
	At   position `json:"at"` // guarded by follower.mu
}

// position is how far a log has come: the last entry's stamp, and how many entries have that stamp. The
// pieces of a long line share one.
type position struct {
	Stamp time.Time `json:"stamp"`
	Count int       `json:"count"`
}

// past moves the position behind an entry of that stamp.
func (p *position) past(stamp time.Time) {
	if !stamp.Equal(p.Stamp) {
		p.Stamp, p.Count = stamp, 0
	}
	p.Count++
}

// prepare puts a container on record that is to be followed, and makes its log.
func (l *Logs) prepare(key pod.Key, path string) error {
	if l.isFollowed(key) {
		return nil
	}
	file, err := openLog(path)
	if err != nil {
		return err
	}
	_ = file.Close()
	return l.save(key, saved{Path: path})
}

func (l *Logs) save(key pod.Key, s saved) error {
	data, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("record log: %w", err)
	}
	if err := atomicfile.Write(l.record(key), data, 0o600); err != nil {
		return fmt.Errorf("record log: %w", err)
	}
	return nil
}

// openLog opens a log for appending.
func openLog(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o640)
	if os.IsNotExist(err) {
		return nil, fmt.Errorf("open log %s: %w", path, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("open log %s: %w", path, err)
	}
	return file, nil
}

// open returns the follower of a container, nil where it is not followed.
func (l *Logs) open(key pod.Key, id string) (*follower, error) {
	data, err := os.ReadFile(l.record(key))
	if os.IsNotExist(err) {
		return nil, nil
	}
	f := &follower{l: l, key: key, id: id, done: make(chan struct{})}
	if err == nil {
		err = json.Unmarshal(data, &f.saved)
	}
	if err != nil {
		return nil, fmt.Errorf("record of the log of %s: %w", key, err)
	}
	if f.file, err = openLog(f.Path); err != nil {
		return nil, err
	}
	written, err := resume(f.file)
	if err != nil {
		return nil, err
	}
	if written.Count > 0 {
		f.At = written
	}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	return f, nil
}

func (f *follower) stop() {
	f.cancel()
	<-f.done
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.file != nil {
		_ = f.file.Close()
		f.file = nil
	}
}

// reopen goes on in the file at the log's path. How far the one before has come is put on record first:
// the new one is empty.
func (f *follower) reopen() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.l.save(f.key, f.saved); err != nil {
		return err
	}
	file, err := openLog(f.Path)
	if err != nil {
		return err
	}
	if f.file != nil {
		_ = f.file.Close()
	}
	f.file = file
	return nil
}

// Between two attempts to follow: dockerd is away, or the container has not started.
const (
	firstWait = 20 * time.Millisecond
	longWait  = time.Second
)

// run follows the container until it has ended and all of its log was written.
func (f *follower) run() {
	defer close(f.done)
	for wait := firstWait; ; wait = min(2*wait, longWait) {
		before := f.position()
		ended, err := f.attempt()
		switch {
		case f.ctx.Err() != nil || errdefs.IsNotFound(err):
			return
		case err != nil:
			f.l.opts.Log.Debug("following a log of docker's", "container", f.id, "error", err)
		case ended && f.position() == before: // dockerd that goes down ends a stream before all of it was told
			return
		}
		if f.position() != before {
			wait = firstWait
		}
		select {
		case <-time.After(wait):
		case <-f.ctx.Done():
			return
		}
	}
}

func (f *follower) position() position {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.At
}

// attempt writes what the container has logged since the position, until dockerd ends the stream; ended
// says that nothing is logged any more, though there may be what the stream did not come to.
func (f *follower) attempt() (ended bool, err error) {
	// Asked before: what the container says until its end comes after the answer.
	c, err := f.l.opts.API.ContainerInspect(f.ctx, f.id, client.ContainerInspectOptions{})
	if err != nil {
		return false, err
	}
	state := c.Container.State
	ended = state != nil && (state.Status == container.StateExited || state.Status == container.StateDead)
	from := f.position()
	opts := client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true, Timestamps: true, Follow: true}
	if from.Count > 0 {
		opts.Since = from.Stamp.UTC().Format(time.RFC3339Nano)
	}
	stream, err := f.l.opts.API.ContainerLogs(f.ctx, f.id, opts)
	if err != nil {
		return false, err
	}
	defer stream.Close()
	next := framed
	if c.Container.Config != nil && c.Container.Config.Tty {
		next = raw
	}
	if err := f.copy(bufio.NewReaderSize(stream, 64<<10), next, from); err != nil {
		// What ends in the middle of a message, or of the answer, comes again with the next attempt.
		if f.ctx.Err() == nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			f.l.opts.Log.Warn("docker broke off a log: if dockerd was restarted, what it had read may be missing, at most 2.1 MB a stream",
				"container", f.id, "log", f.Path, "error", err)
		}
		return false, err
	}
	return ended, nil
}

// copy writes the entries of a stream that begins at from, which the log has in part.
func (f *follower) copy(in *bufio.Reader, next func(*bufio.Reader) (message, error), from position) error {
	skip := from.Count
	var out []byte
	at := from
	for {
		m, err := next(in)
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return errors.Join(err, f.write(out, at))
		}
		if m.stamp.Before(from.Stamp) {
			continue
		}
		if skip > 0 && m.stamp.Equal(from.Stamp) {
			skip--
			continue
		}
		out = m.append(out)
		at.past(m.stamp)
		if in.Buffered() == 0 || len(out) >= 64<<10 {
			if err := f.write(out, at); err != nil {
				return err
			}
			out = out[:0]
		}
	}
}

// write appends whole entries to the log; then it has come to at.
func (f *follower) write(out []byte, at position) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.file == nil {
		return fmt.Errorf("log %s: %w", f.Path, os.ErrClosed)
	}
	if _, err := f.file.Write(out); err != nil {
		// What was written of it is cut off, so that it can be written again.
		written, cut := resume(f.file)
		if cut == nil && written.Count > 0 {
			f.At = written
		}
		return errors.Join(fmt.Errorf("write log: %w", err), cut)
	}
	f.At = at
	return nil
}

// append appends the message as a log entry.
func (m *message) append(dst []byte) []byte {
	dst = m.stamp.UTC().AppendFormat(dst, time.RFC3339Nano)
	tag := byte('P')
	if m.whole {
		tag = 'F'
	}
	dst = append(append(append(dst, ' '), m.stream...), ' ', tag, ' ')
	return append(append(dst, m.line...), '\n')
}

// message is one entry of a log as the API gives it.
type message struct {
	stamp  time.Time
	stream crilog.Stream
	line   []byte // valid until the next message is read
	whole  bool   // its line ends here
}
