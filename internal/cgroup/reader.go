package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"gantry/internal/pod"
)

// reader reads the files of one cgroup through one buffer and keeps the first error. A file is named by
// the directory of its hierarchy, "" for none, and its own name.
type reader struct {
	cgroup    string
	kept      *files // what was open before, and what this reading leaves open
	keep      bool   // whether files that are opened now are left open
	there     int    // files that exist
	stale     bool   // a file that was open before is another cgroup's, one that is gone
	err       error
	hierarchy string // in which the cgroup's directory is dirfd, "" for none
	dirfd     int
	buf       [8192]byte
}

var readers = sync.Pool{New: func() any { return new(reader) }}

// number reads a file that holds one number; "max", and a file that is not there, are 0.
func (r *reader) number(hierarchy, name string) uint64 {
	n, _ := r.limit(hierarchy, name)
	return n
}

// limit reads a file that holds one number; ok is false for "max" and for a file that is not there.
func (r *reader) limit(hierarchy, name string) (n uint64, ok bool) {
	return parse(bytes.TrimSpace(r.read(hierarchy, name)))
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
func (r *reader) keyed(hierarchy, name string, each func(key []byte, value uint64)) {
	for line := range bytes.Lines(r.read(hierarchy, name)) {
		key, value, found := bytes.Cut(bytes.TrimSpace(line), []byte{' '})
		if n, ok := parse(value); found && ok {
			each(key, n)
		}
	}
}

// stall reads a file of pressure; nil where there is none.
func (r *reader) stall(hierarchy, name string) *pod.Stall {
	content := r.read(hierarchy, name)
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

// open opens a file. The cgroup's directory stays open until one in another hierarchy is asked for: its
// path is long, and is then walked once.
func (r *reader) open(hierarchy, name string) (fd int, err error) {
	if hierarchy != r.hierarchy {
		r.close()
		dir := filepath.Join(hierarchy, r.cgroup)
		if r.dirfd, err = unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
			return absent, err
		}
		r.hierarchy = hierarchy
	}
	return unix.Openat(r.dirfd, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
}

func (r *reader) close() {
	if r.hierarchy != "" {
		_ = unix.Close(r.dirfd)
		r.hierarchy = ""
	}
}

// read returns a file's content, valid until the next read. A file that is not there is empty.
func (r *reader) read(hierarchy, name string) []byte {
	if hierarchy == "" || r.err != nil || r.stale {
		return nil
	}
	fd, known := r.kept.find(hierarchy, name)
	if !known {
		var err error
		if fd, err = r.open(hierarchy, name); err != nil {
			fd = absent
			r.fail(err)
		}
		if r.keep && r.err == nil {
			r.kept.list = append(r.kept.list, file{hierarchy, name, fd})
		} else if fd != absent {
			defer func() { _ = unix.Close(fd) }()
		}
	}
	if fd == absent {
		return nil
	}
	content, err := r.content(fd)
	if err != nil {
		r.stale = known && gone(err)
		r.fail(fmt.Errorf("%s: %w", name, err))
		return nil
	}
	r.there++
	return content
}

func (r *reader) content(fd int) ([]byte, error) {
	n := 0
	for n < len(r.buf) {
		more, err := unix.Pread(fd, r.buf[n:], int64(n))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		space := len(r.buf) - n
		n += more
		if more < space { // the kernel hands out these files whole: there is no need to ask for the end
			return r.buf[:n], nil
		}
	}
	return nil, io.ErrShortBuffer
}

// fail keeps err, unless it means that the file is not there or that this kernel has the account
// turned off, as with psi=0.
func (r *reader) fail(err error) {
	if !gone(err) && !errors.Is(err, unix.EOPNOTSUPP) {
		r.err = err
	}
}
