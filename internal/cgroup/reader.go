package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"

	"golang.org/x/sys/unix"

	"gantry/internal/pod"
)

// reader reads the files of one cgroup through one buffer and keeps the first error.
type reader struct {
	files int // that exist
	err   error
	dir   string // that dirfd is, "" for none
	dirfd int
	buf   [8192]byte
}

var readers = sync.Pool{New: func() any { return new(reader) }}

// number reads a file that holds one number; "max", and a file that is not there, are 0.
func (r *reader) number(dir, name string) uint64 {
	n, _ := r.limit(dir, name)
	return n
}

// limit reads a file that holds one number; ok is false for "max" and for a file that is not there.
func (r *reader) limit(dir, name string) (n uint64, ok bool) {
	return parse(bytes.TrimSpace(r.read(dir, name)))
}

// parse does without the string that strconv wants: statistics are read often.
func parse(digits []byte) (n uint64, ok bool) {
	for _, d := range digits {
		if d < '0' || d > '9' {
			return 0, false
		}
		n = 10*n + uint64(d-'0')
	}
	return n, len(digits) > 0
}

// keyed reads a file of lines "key value". The key is valid during the call.
func (r *reader) keyed(dir, name string, each func(key []byte, value uint64)) {
	for line := range bytes.Lines(r.read(dir, name)) {
		key, value, found := bytes.Cut(bytes.TrimSpace(line), []byte{' '})
		if n, ok := parse(value); found && ok {
			each(key, n)
		}
	}
}

// stall reads a file of pressure; nil where there is none.
func (r *reader) stall(dir, name string) *pod.Stall {
	content := r.read(dir, name)
	if len(content) == 0 {
		return nil
	}
	s := new(pod.Stall)
	for line := range bytes.Lines(content) {
		what, values, _ := bytes.Cut(line, []byte{' '})
		switch string(what) {
		case "some":
			s.Some = stallTime(values)
		case "full":
			s.Full = stallTime(values)
		}
	}
	return s
}

// stallTime reads fields such as "avg10=0.12" and "total=345", the total in microseconds.
func stallTime(fields []byte) (t pod.StallTime) {
	for f := range bytes.FieldsSeq(fields) {
		key, value, _ := bytes.Cut(f, []byte{'='})
		switch string(key) {
		case "avg10":
			t.Avg10 = percent(value)
		case "avg60":
			t.Avg60 = percent(value)
		case "avg300":
			t.Avg300 = percent(value)
		case "total":
			n, _ := parse(value)
			t.Total = micros(n)
		}
	}
	return t
}

// percent reads a number such as "12.34"; the kernel always writes two digits behind the point.
func percent(value []byte) float64 {
	whole, cents, _ := bytes.Cut(value, []byte{'.'})
	n, _ := parse(whole)
	c, _ := parse(cents)
	return float64(100*n+c) / 100
}

// open opens a file of a directory that stays open until another one is asked for: the path of a
// container's cgroup is long, and is then walked once.
func (r *reader) open(dir, name string) (fd int, err error) {
	if dir != r.dir {
		r.close()
		if r.dirfd, err = unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
			return -1, err
		}
		r.dir = dir
	}
	return unix.Openat(r.dirfd, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
}

func (r *reader) close() {
	if r.dir != "" {
		_ = unix.Close(r.dirfd)
		r.dir = ""
	}
}

// read returns a file's content, valid until the next read. A file that is not there is empty.
func (r *reader) read(dir, name string) []byte {
	if dir == "" || r.err != nil {
		return nil
	}
	fd, err := r.open(dir, name)
	if err != nil {
		r.fail(err)
		return nil
	}
	defer func() { _ = unix.Close(fd) }()
	n := 0
	for n < len(r.buf) {
		more, err := unix.Read(fd, r.buf[n:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			r.fail(err)
			return nil
		}
		space := len(r.buf) - n
		n += more
		if more < space { // the kernel hands out these files whole: there is no need to ask for the end
			r.files++
			return r.buf[:n]
		}
	}
	r.fail(fmt.Errorf("%s: %w", name, io.ErrShortBuffer))
	return nil
}

// fail keeps err, unless it means that the file is not there or that this kernel has the account
// turned off, as with psi=0.
func (r *reader) fail(err error) {
	if !gone(err) && !errors.Is(err, unix.EOPNOTSUPP) {
		r.err = err
	}
}
