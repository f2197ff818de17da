package worker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"gantry/internal/crilog"
	"gantry/internal/keeper/logdriver"
)

// logReader reads a log back for dockerd.
type logReader struct {
	logdriver.Range
	s    *sink
	send func(*logdriver.Entry) error

	file *os.File
	rest []byte // of an entry that is not whole
	skip int    // entries before the wanted last ones
}

// errEnough ends reading behind Until.
var errEnough = errors.New("nothing after it is wanted")

func (r *logReader) run(ctx context.Context) error {
	if err := r.open(); err != nil {
		return err
	}
	defer func() { _ = r.file.Close() }()
	if r.Tail >= 0 {
		if err := r.position(); err != nil {
			return err
		}
	}
	for {
		// Asked for before reading: what comes afterwards closes it.
		r.s.mu.Lock()
		grown, fed := r.s.grown, len(r.s.Feeds) > 0
		r.s.mu.Unlock()
		err := r.read(r.show)
		if errors.Is(err, errEnough) {
			return nil
		}
		if err == nil {
			err = r.send(nil)
		}
		if err != nil || !r.Follow {
			return err
		}
		if next, err := r.rotated(); next || err != nil {
			if err != nil {
				return err
			}
			continue
		}
		if !fed {
			return nil
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (r *logReader) open() error {
	file, err := os.Open(r.s.LogPath)
	if err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	r.file, r.rest = file, nil
	return nil
}

// rotated goes on in the file that now has the log's path, if it is another.
func (r *logReader) rotated() (bool, error) {
	old, err := r.file.Stat()
	if err != nil {
		return false, fmt.Errorf("read log: %w", err)
	}
	now, err := os.Stat(r.s.LogPath)
	if err != nil || os.SameFile(old, now) {
		return false, nil // renamed and not yet made again
	}
	// What was written before the log was opened anew.
	if err := r.read(r.show); err != nil {
		return false, err
	}
	_ = r.file.Close()
	return true, r.open()
}

// position finds where the last Tail entries begin.
func (r *logReader) position() error {
	n := 0
	if err := r.read(func(*crilog.Entry) error { n++; return nil }); err != nil {
		return err
	}
	r.skip, r.rest = n-r.Tail, nil
	if _, err := r.file.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	return nil
}

func (r *logReader) show(e *crilog.Entry) error {
	if r.skip--; r.skip >= 0 {
		return nil
	}
	if !r.Since.IsZero() && e.Time.Before(r.Since) {
		return nil
	}
	if !r.Until.IsZero() && e.Time.After(r.Until) {
		return errEnough
	}
	out := logdriver.Entry{Source: e.Stream, Time: e.Time.UnixNano(), Line: e.Content, Partial: e.Partial}
	if !e.Partial { // dockerd passes on what it is given
		out.Line = append(bytes.Clone(e.Content), '\n')
	}
	return r.send(&out)
}

// read calls each with every whole entry from here to the file's end.
func (r *logReader) read(each func(*crilog.Entry) error) error {
	b := pool.Get().(*buffers)
	defer pool.Put(b)
	for {
		n, err := r.file.Read(b.raw[:])
		data := b.raw[:n]
		for len(data) > 0 {
			i := bytes.IndexByte(data, '\n')
			if i < 0 {
				r.rest = append(r.rest, data...)
				break
			}
			line := data[:i]
			if len(r.rest) > 0 {
				line = append(r.rest, line...)
				r.rest = nil
			}
			data = data[i+1:]
			e, bad := crilog.Parse(line)
			if bad != nil {
				continue // not ours: somebody wrote into the log
			}
			if stop := each(&e); stop != nil {
				return stop
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read log: %w", err)
		}
	}
}
