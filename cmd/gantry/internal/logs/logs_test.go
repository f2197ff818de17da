package logs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gantry/cmd/gantry/internal/logs"
	"gantry/internal/crilog"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// lines formats numbered lines, a second apart.
func lines(from, to int) []byte {
	var out []byte
	for i := from; i <= to; i++ {
		out = crilog.Format(out, start.Add(time.Duration(i)*time.Second), crilog.Stdout, fmt.Appendf(nil, "line %d\n", i))
	}
	return out
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestRead(t *testing.T) {
	long := strings.Repeat("x", 3*crilog.MaxPiece) + "\n"
	tests := map[string]struct {
		file []byte
		opts logs.Options
		out  string
	}{
		"all":                            {lines(1, 3), logs.Options{Tail: -1}, "line 1\nline 2\nline 3\n"},
		"the last two":                   {lines(1, 9), logs.Options{Tail: 2}, "line 8\nline 9\n"},
		"none":                           {lines(1, 9), logs.Options{Tail: 0}, ""},
		"more than there are":            {lines(1, 2), logs.Options{Tail: 5}, "line 1\nline 2\n"},
		"exactly as many as there are":   {lines(1, 2), logs.Options{Tail: 2}, "line 1\nline 2\n"},
		"since":                          {lines(1, 3), logs.Options{Tail: -1, Since: start.Add(3 * time.Second)}, "line 3\n"},
		"stamps":                         {lines(1, 1), logs.Options{Tail: -1, Timestamps: true}, "2026-01-02T03:04:06Z line 1\n"},
		"pieces join":                    {crilog.Format(nil, start, crilog.Stdout, []byte(long)), logs.Options{Tail: -1}, long},
		"a line of many pieces is one":   {crilog.Format(lines(1, 2), start, crilog.Stdout, []byte(long)), logs.Options{Tail: 2}, "line 2\n" + long},
		"pieces have one stamp":          {crilog.Format(nil, start, crilog.Stdout, []byte(long)), logs.Options{Tail: -1, Timestamps: true}, "2026-01-02T03:04:05Z " + long},
		"an entry being written is left": {append(lines(1, 1), "2026-01-02T03:04:05Z stdout F ha"...), logs.Options{Tail: -1}, "line 1\n"},
		"empty":                          {nil, logs.Options{Tail: 3}, ""},
		"tail across blocks":             {lines(1, 20000), logs.Options{Tail: 1}, "line 20000\n"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "0.log")
			write(t, path, tt.file)
			var out bytes.Buffer
			if err := logs.Read(t.Context(), path, tt.opts, &out, io.Discard); err != nil {
				t.Fatal(err)
			}
			if out.String() != tt.out {
				t.Errorf("got %.200q\nwant %.200q", out.String(), tt.out)
			}
		})
	}
}

func TestLongTailsAreExact(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	write(t, path, lines(1, 9000))
	for _, n := range []int{1, 100, 1999, 4321, 8999, 9000} {
		var out bytes.Buffer
		if err := logs.Read(t.Context(), path, logs.Options{Tail: n}, &out, io.Discard); err != nil {
			t.Fatal(err)
		}
		if got := bytes.Count(out.Bytes(), []byte{'\n'}); got != n {
			t.Errorf("tail %d gave %d lines", n, got)
		}
	}
}

func TestStreamsAreApart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	write(t, path, crilog.Format(lines(1, 1), start, crilog.Stderr, []byte("bad\n")))
	var out, errs bytes.Buffer
	if err := logs.Read(t.Context(), path, logs.Options{Tail: -1}, &out, &errs); err != nil {
		t.Fatal(err)
	}
	if out.String() != "line 1\n" || errs.String() != "bad\n" {
		t.Errorf("stdout %q, stderr %q", out.String(), errs.String())
	}
}

func TestErrors(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	if err := logs.Read(t.Context(), path, logs.Options{}, io.Discard, io.Discard); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("absent file: %v", err)
	}
	write(t, path, []byte("garbage\n"))
	if err := logs.Read(t.Context(), path, logs.Options{Tail: -1}, io.Discard, io.Discard); !errors.Is(err, crilog.ErrFormat) {
		t.Errorf("garbage: %v", err)
	}
}

// follow starts a reader and returns where its output arrives and its end.
func follow(t *testing.T, path string, ended <-chan struct{}) (*io.PipeReader, <-chan error) {
	t.Helper()
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := logs.Read(t.Context(), path, logs.Options{Tail: -1, Ended: ended}, w, w)
		_ = w.Close()
		done <- err
	}()
	return r, done
}

// expect reads want and nothing less; the pipe makes it wait for the reader.
func expect(t *testing.T, r io.Reader, want string) {
	t.Helper()
	buf := make([]byte, len(want))
	if _, err := io.ReadFull(r, buf); err != nil {
		t.Fatalf("%v after %q", err, buf)
	}
	if string(buf) != want {
		t.Fatalf("got %q, want %q", buf, want)
	}
}

func TestFollowThroughRotationToTheEnd(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "0.log")
	ended := make(chan struct{})
	r, done := follow(t, path, ended)
	write(t, path, lines(1, 2)) // a file that comes later is waited for
	expect(t, r, "line 1\nline 2\n")

	write(t, path, lines(3, 3))
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	write(t, path+".1", lines(4, 4)) // the writer has not reopened yet
	write(t, path, lines(5, 5))
	expect(t, r, "line 3\nline 4\nline 5\n")

	write(t, path, lines(6, 6)[:20]) // an entry in two writes
	write(t, path, lines(6, 6)[20:])
	expect(t, r, "line 6\n")

	write(t, path, lines(7, 7))
	close(ended)
	expect(t, r, "line 7\n")
	if rest, err := io.ReadAll(r); len(rest) > 0 || err != nil {
		t.Errorf("more: %q, %v", rest, err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestFollowEndsWithItsContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := logs.Read(ctx, path, logs.Options{Tail: -1, Ended: make(chan struct{})}, io.Discard, io.Discard)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
