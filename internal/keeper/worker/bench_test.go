package worker

import (
	"bytes"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/crilog"
	"gantry/internal/keeper/wire"
)

// BenchmarkLog moves lines of 100 bytes from a pipe into a log, 64 KiB an operation.
func BenchmarkLog(b *testing.B) {
	for name, bounds := range map[string]wire.LogBounds{
		"unbounded": {}, "default": {FullWait: 30 * time.Second}, "all": {Rate: 1 << 40, Size: 1 << 40, FullWait: 30 * time.Second},
	} {
		b.Run(name, func(b *testing.B) {
			var p [2]int
			if err := unix.Pipe2(p[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
				b.Fatal(err)
			}
			memory, err := newStage("bench")
			if err != nil {
				b.Fatal(err)
			}
			path := b.TempDir() + "/log"
			s := &stream{name: crilog.Stdout, format: plain{crilog.Stdout}, via: [2]int{-1, -1}, src: os.NewFile(uintptr(p[0]), "fifo"), log: &logFile{path: path}}
			s.log.bounds.LogBounds = bounds
			if s.log.fd, _, err = openLog(path); err != nil {
				b.Fatal(err)
			}
			if s.st, err = openStage(memory); err != nil {
				b.Fatal(err)
			}
			text := bytes.Repeat(append(bytes.Repeat([]byte("x"), 99), '\n'), 600)
			fd := int(fdOf(s.src))
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				if _, err := unix.Write(p[1], text); err != nil {
					b.Fatal(err)
				}
				s.pull(fd, -1)
				if size, _ := s.log.size(); size > 64<<20 {
					_ = unix.Ftruncate(s.log.fd, 0)
				}
			}
		})
	}
}
