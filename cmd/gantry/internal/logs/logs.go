// Package logs reads a container's log file for a person: the last lines, since a time, and further
// ones as they come, through rotations.
package logs

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"

	"gantry/internal/crilog"
)

// Options say what to show.
type Options struct {
	Tail       int // lines from the end; negative: all
	Since      time.Time
	Timestamps bool
	// Ended, if not nil, follows the file until it is closed, and then to the end of what is there.
	Ended <-chan struct{}
}

// Read writes the content of the log file to stdout and stderr. With Ended it goes on until Ended is
// closed or ctx ends; a file that is not there yet is then waited for, and one that is rotated away
// is read to its end before its successor.
func Read(ctx context.Context, path string, o Options, stdout, stderr io.Writer) error {
	p := &printer{opts: o, out: map[crilog.Stream]io.Writer{crilog.Stdout: stdout, crilog.Stderr: stderr}}
	if o.Ended == nil {
		f, err := os.Open(path)
		if err != nil {
			return fmt.Errorf("open log: %w", err)
		}
		defer f.Close()
		return p.once(f)
	}
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch log: %w", err)
	}
	defer func() { _ = w.Close() }()
	if err := w.Add(filepath.Dir(path)); err != nil {
		return fmt.Errorf("watch log: %w", err)
	}
	fw := &follower{path: path, print: p, events: w.Events, errs: w.Errors, ended: o.Ended}
	defer fw.close()
	return fw.run(ctx)
}

// printer writes entries as the options say.
type printer struct {
	opts Options
	out  map[crilog.Stream]io.Writer
	open map[crilog.Stream]bool // inside a line whose last piece was partial
}

func (p *printer) entry(line []byte) error {
	e, err := crilog.Parse(line)
	if err != nil {
		return fmt.Errorf("%w: %q", err, clip(line))
	}
	if e.Time.Before(p.opts.Since) {
		return nil
	}
	if p.open == nil {
		p.open = map[crilog.Stream]bool{}
	}
	var buf []byte
	if p.opts.Timestamps && !p.open[e.Stream] {
		buf = append(e.Time.AppendFormat(buf, time.RFC3339Nano), ' ')
	}
	buf = append(buf, e.Content...)
	if !e.Partial {
		buf = append(buf, '\n')
	}
	p.open[e.Stream] = e.Partial
	_, err = p.out[e.Stream].Write(buf)
	return err
}

func clip(line []byte) []byte { return line[:min(len(line), 80)] }

// once prints the file as it is now.
func (p *printer) once(f *os.File) error {
	if err := p.seek(f); err != nil {
		return err
	}
	r := bufio.NewReader(f)
	for {
		line, err := r.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil // what has no newline yet is an entry being written
		}
		if err != nil {
			return fmt.Errorf("read log: %w", err)
		}
		if err := p.entry(line); err != nil {
			return err
		}
	}
}

// seek places f at the first entry that Tail asks for. A line counts once, however many pieces it has.
func (p *printer) seek(f *os.File) error {
	if p.opts.Tail < 0 {
		return nil
	}
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	start, err := tailStart(f, end, p.opts.Tail)
	if err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	_, err = f.Seek(start, io.SeekStart)
	return err
}

// tailStart walks back over entries until n whole lines lie behind it.
func tailStart(f io.ReaderAt, end int64, n int) (int64, error) {
	const block = 64 << 10
	var pending []byte // the beginning of what was read so far: from pos to the next entry's start
	pos, start, whole := end, end, 0
	for pos > 0 {
		size := min(block, pos)
		pos -= size
		buf := make([]byte, size, size+int64(len(pending)))
		if _, err := f.ReadAt(buf, pos); err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		pending = append(buf, pending...)
		for {
			i := bytes.LastIndexByte(pending[:max(len(pending)-1, 0)], '\n')
			if i < 0 && pos > 0 {
				break
			}
			entry := pending[i+1:]
			if e, err := crilog.Parse(entry); err == nil && !e.Partial && bytes.HasSuffix(entry, []byte{'\n'}) {
				whole++
			}
			if whole > n {
				return start, nil
			}
			start = pos + int64(i) + 1
			if pending = pending[:i+1]; i < 0 {
				return start, nil
			}
		}
	}
	return start, nil
}

// follower reads a file that grows and is rotated.
type follower struct {
	path    string
	print   *printer
	events  <-chan fsnotify.Event
	errs    <-chan error
	ended   <-chan struct{}
	file    *os.File
	partial []byte // an entry whose newline is not there yet
	read    bool   // a file was opened before: Tail is done with
}

func (f *follower) close() {
	if f.file != nil {
		_ = f.file.Close()
	}
}

func (f *follower) run(ctx context.Context) error {
	for last := false; ; {
		if err := f.drain(); err != nil || last {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-f.ended:
			last = true
		case <-f.events:
		case err := <-f.errs:
			// an overflow loses events, not bytes: the file is read again
			if !errors.Is(err, fsnotify.ErrEventOverflow) {
				return fmt.Errorf("watch log: %w", err)
			}
		}
	}
}

// drain prints everything there is, of the file that is open and of those that took its place.
func (f *follower) drain() error {
	for {
		if f.file == nil {
			if ok, err := f.open(); !ok || err != nil {
				return err
			}
		}
		// The name is looked at before the end is: the writer makes the new file when it reopens its
		// log, so an old file that lost its name to a new one is complete.
		replaced, err := f.replaced()
		if err != nil {
			return err
		}
		if err := f.rest(); err != nil {
			return err
		}
		if !replaced {
			return nil
		}
		_ = f.file.Close()
		f.file, f.partial = nil, nil
	}
}

func (f *follower) open() (bool, error) {
	file, err := os.Open(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open log: %w", err)
	}
	f.file = file
	if !f.read {
		f.read = true
		return true, f.print.seek(file)
	}
	return true, nil
}

// replaced says whether another file has the name now.
func (f *follower) replaced() (bool, error) {
	now, err := os.Stat(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at log: %w", err)
	}
	open, err := f.file.Stat()
	if err != nil {
		return false, fmt.Errorf("look at log: %w", err)
	}
	return !os.SameFile(now, open), nil
}

func (f *follower) rest() error {
	buf := make([]byte, 64<<10)
	for {
		n, err := f.file.Read(buf)
		f.partial = append(f.partial, buf[:n]...)
		for {
			line, rest, ok := bytes.Cut(f.partial, []byte{'\n'})
			if !ok {
				break
			}
			if printErr := f.print.entry(line); printErr != nil {
				return printErr
			}
			f.partial = rest
		}
		if errors.Is(err, io.EOF) {
			f.partial = bytes.Clone(f.partial)
			return nil
		}
		if err != nil {
			return fmt.Errorf("read log: %w", err)
		}
	}
}
