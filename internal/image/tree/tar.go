package tree

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// TarSize returns the length of the tar of which the record was made.
func TarSize(record string) (n int64, err error) {
	err = Read(record, Visitor{
		Raw: func(p []byte) error { n += int64(len(p)); return nil },
		Content: func(s Sum) error {
			if !s.Apart {
				n += s.Size
			}
			return nil
		},
	})
	return n, err
}

// WriteTar writes the tar of which the record was made: its headers from the record, the contents from
// the files in dir. A file that is not what it was is ErrDataLoss, at the latest when the digest of
// what was written is not the layer's diff id; a tar whose later entries replace earlier ones cannot
// be put together again: ErrNotImplemented.
func WriteTar(ctx context.Context, record, dir string, w io.Writer) error {
	paths := make(map[int]string)
	err := Read(record, Visitor{Entry: func(e *Entry) error {
		if e.Content > 0 {
			paths[e.Content] = e.Path
		}
		return nil
	}})
	if err != nil {
		return err
	}
	n := 0
	return Read(record, Visitor{
		Raw: func(p []byte) error { _, err := w.Write(p); return err },
		Content: func(s Sum) error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if n++; s.Apart {
				return nil
			}
			p, ok := paths[n]
			if !ok {
				return fmt.Errorf("the layer replaces one of its own files, whose first content was not kept: %w", errdefs.ErrNotImplemented)
			}
			return copyContent(w, filepath.Join(dir, p), s.Size)
		},
	})
}

func copyContent(w io.Writer, path string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("%w: %w", err, errdefs.ErrDataLoss)
	}
	defer func() { _ = f.Close() }()
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	n, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{io.LimitReader(f, size)}, *buf)
	if err == nil && n < size {
		err = fmt.Errorf("%s has %d bytes, had %d: %w", path, n, size, errdefs.ErrDataLoss)
	}
	return err
}
