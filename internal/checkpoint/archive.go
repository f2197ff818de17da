package checkpoint

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	metadata "github.com/checkpoint-restore/checkpointctl/lib"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Pack writes the checkpoint in dir as an archive, which must not be there yet and is only the owner's
// to read: it holds what the processes had in memory. What describes it comes first, so that it is
// found without reading the rest. An archive that could not be finished is removed.
func Pack(ctx context.Context, dir, archive string) (err error) {
	f, err := os.OpenFile(archive, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("write checkpoint archive: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("write checkpoint archive: %w", err), f.Close(), os.Remove(archive))
		}
	}()
	w := tar.NewWriter(f)
	if err = packAll(ctx, dir, w); err != nil {
		return err
	}
	if err = w.Close(); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	return f.Close()
}

func packAll(ctx context.Context, dir string, w *tar.Writer) error {
	names, err := list(dir)
	if err != nil {
		return err
	}
	first := []string{ConfigFile, SpecFile}
	names = append(first, slices.DeleteFunc(names, func(n string) bool { return slices.Contains(first, n) })...)
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := packOne(ctx, dir, name, w); err != nil {
			return err
		}
	}
	return nil
}

// list names what is below dir, directories before what is in them.
func list(dir string) ([]string, error) {
	var names []string
	err := fs.WalkDir(os.DirFS(dir), ".", func(name string, _ fs.DirEntry, err error) error {
		if err == nil && name != "." {
			names = append(names, name)
		}
		return err
	})
	return names, err
}

func packOne(ctx context.Context, dir, name string, w *tar.Writer) error {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) {
		return nil // a link or socket is nothing that a restore needs
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() && !st.IsDir() {
		return err
	}
	hdr, err := tar.FileInfoHeader(st, "")
	if err != nil {
		return err
	}
	hdr.Name, hdr.Uname, hdr.Gname = name, "", ""
	if st.IsDir() {
		hdr.Name += "/"
		return w.WriteHeader(hdr)
	}
	if err = w.WriteHeader(hdr); err != nil {
		return err
	}
	_, err = io.Copy(w, io.LimitReader(&until{ctx, f}, hdr.Size))
	return err
}

// until reads as long as ctx has not ended.
type until struct {
	ctx context.Context //nolint:containedctx // of the one call that reads
	r   io.Reader
}

func (u *until) Read(p []byte) (int, error) {
	if u.ctx.Err() != nil {
		return 0, context.Cause(u.ctx)
	}
	return u.r.Read(p)
}

// Inspect says which container the archive is a checkpoint of. One that is no such archive is
// ErrInvalidArgument.
func Inspect(ctx context.Context, archive string) (*Container, error) {
	var c *metadata.ContainerConfig
	spec, images := false, false
	err := each(ctx, archive, func(hdr *tar.Header, name string, r io.Reader) error {
		switch {
		case name == ConfigFile:
			c = new(metadata.ContainerConfig)
			if err := json.NewDecoder(io.LimitReader(r, maxJSON)).Decode(c); err != nil {
				return fmt.Errorf("%s: %w: %w", name, errdefs.ErrInvalidArgument, err)
			}
		case name == SpecFile:
			spec = true
		case strings.HasPrefix(name, ImagesDir+"/"), name == ImagesDir && hdr.Typeflag == tar.TypeDir:
			images = true
		}
		if c != nil && spec && images {
			return errEnough
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if c == nil || !spec || !images {
		return nil, fmt.Errorf("%s is no checkpoint: it must have %s, %s and %s: %w",
			archive, ConfigFile, SpecFile, ImagesDir, errdefs.ErrInvalidArgument)
	}
	return described(c)
}

// Unpack makes the directory dir, which must not be there, and puts into it what the archive holds.
func Unpack(ctx context.Context, archive, dir string) error {
	root, err := makeRoot(dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	return each(ctx, archive, func(hdr *tar.Header, name string, r io.Reader) error {
		if hdr.Typeflag == tar.TypeDir {
			return root.MkdirAll(name, 0o700)
		}
		return put(root, name, r)
	})
}

// Copy makes the directory dir, which must not be there, and puts into it the checkpoint that is in
// from, such as the root file system of an image that was made of one.
func Copy(ctx context.Context, from, dir string) error {
	source, err := os.OpenRoot(from)
	if err != nil {
		return fmt.Errorf("copy checkpoint: %w", err)
	}
	defer func() { _ = source.Close() }()
	root, err := makeRoot(dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	return fs.WalkDir(source.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return fmt.Errorf("copy checkpoint: %w", err)
		case d.IsDir():
			return root.MkdirAll(name, 0o700)
		case !d.Type().IsRegular():
			return nil
		}
		f, err := source.Open(name)
		if err != nil {
			return fmt.Errorf("copy checkpoint: %w", err)
		}
		defer func() { _ = f.Close() }()
		return put(root, name, &until{ctx, f})
	})
}

func makeRoot(dir string) (*os.Root, error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("unpack checkpoint: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("unpack checkpoint: %w", err)
	}
	return root, nil
}

func put(root *os.Root, name string, r io.Reader) error {
	if err := root.MkdirAll(path.Dir(name), 0o700); err != nil {
		return fmt.Errorf("unpack checkpoint: %w", err)
	}
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("unpack checkpoint: %s is there twice: %w", name, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return fmt.Errorf("unpack checkpoint: %w", err)
	}
	if _, err = io.Copy(f, r); err != nil {
		return errors.Join(fmt.Errorf("unpack checkpoint: %w", err), f.Close())
	}
	return f.Close()
}

var errEnough = errors.New("the caller has seen enough")

// each visits the files and directories of an archive, plain or compressed. What is neither is a
// malformed archive, and so is a name that leads out of it.
func each(ctx context.Context, archive string, visit func(hdr *tar.Header, name string, r io.Reader) error) error {
	f, err := os.OpenFile(archive, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("read checkpoint archive: %w", err)
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return fmt.Errorf("read checkpoint archive: %s is no regular file: %w", archive, errors.Join(errdefs.ErrInvalidArgument, err))
	}
	plain, err := compression.DecompressStream(&until{ctx, f})
	if err != nil {
		return fmt.Errorf("read checkpoint archive %s: %w: %w", archive, errdefs.ErrInvalidArgument, err)
	}
	defer func() { _ = plain.Close() }()
	tr := tar.NewReader(plain)
	for {
		hdr, err := tr.Next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return fmt.Errorf("read checkpoint archive %s: %w: %w", archive, errdefs.ErrInvalidArgument, err)
		}
		name := path.Clean(hdr.Name)
		if !filepath.IsLocal(name) {
			return fmt.Errorf("read checkpoint archive %s: %q leads out of it: %w", archive, hdr.Name, errdefs.ErrInvalidArgument)
		}
		if name == "." {
			continue
		}
		if hdr.Typeflag != tar.TypeReg && hdr.Typeflag != tar.TypeDir {
			return fmt.Errorf("read checkpoint archive %s: %q is neither file nor directory: %w", archive, hdr.Name, errdefs.ErrInvalidArgument)
		}
		if err := visit(hdr, name, tr); errors.Is(err, errEnough) {
			return nil
		} else if err != nil {
			return err
		}
	}
}
