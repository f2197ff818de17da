package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// origin says what a layer is made of. Layers of one origin are the same, and have one directory.
type origin struct {
	// DiffID is the digest of the tar of which the layer's tree is made. The config of an image names
	// it; of an artifact's layer it is known when that was unpacked.
	DiffID digest.Digest `json:"diffID,omitempty"`
	// Blob is the digest of the blob that is an artifact's layer; "" in images.
	Blob digest.Digest `json:"blob,omitempty"`
	// File is where an artifact's blob lies if it is a file: see ADR 9.
	File string `json:"file,omitempty"`
	// Tar says that the blob's media type is a tar's: it is unpacked if it is one.
	Tar bool `json:"tar,omitempty"`
}

// identity is equal for what is made of the same.
func (o origin) identity() string {
	if o.Blob == "" {
		return o.DiffID.String()
	}
	return fmt.Sprintf("%s %t %q", o.Blob, o.Tar, o.File)
}

// nameLength is short because old kernels take all of a mount's layers in one page of options.
const nameLength = 16

// name is the name of the layer's directory.
func (o origin) name() string {
	if o.Blob == "" {
		return o.DiffID.Encoded()[:nameLength]
	}
	return shortHash(o.identity())
}

func shortHash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])[:nameLength]
}

// wanted is a layer of an image: what it is made of, and the blob that delivers it. A docker-archive
// describes no blobs.
type wanted struct {
	origin
	blob ocispec.Descriptor
}

// reading is what becomes of a blob on its way to a tree.
type reading struct {
	tar    io.Reader
	asFile bool // the tar was made here, around the blob
	done   func()
}

// read turns the blob into the tar of the layer's tree.
func (w *wanted) read(ctx context.Context, limits windows, blob io.Reader) (*reading, error) {
	br := bufio.NewReaderSize(blob, pieceSize)
	if w.Blob != "" && (!w.Tar || !holdsTar(ctx, limits, br)) {
		around, err := inTar(br, w.File, w.blob.Size)
		return &reading{tar: around, asFile: true, done: func() {}}, err
	}
	plain, done, err := decompress(ctx, limits, br)
	return &reading{tar: plain, done: done}, err
}

// holdsTar looks whether the blob begins as a tar does, compressed or not: tools give files that are none
// a tar's media type when nobody tells them another. A blob that cannot be read is left to its reader.
func holdsTar(ctx context.Context, limits windows, br *bufio.Reader) bool {
	head, err := br.Peek(pieceSize)
	if err != nil && !errors.Is(err, io.EOF) {
		return true
	}
	plain, done, err := decompress(ctx, limits, bufio.NewReader(bytes.NewReader(head)))
	if err != nil {
		return false
	}
	defer done()
	_, err = tar.NewReader(plain).Next()
	return err == nil || errors.Is(err, io.EOF) && len(head) > 0 // a tar may be empty
}

// inTar returns a tar that holds the blob as its only file.
func inTar(blob io.Reader, file string, size int64) (io.Reader, error) {
	var head bytes.Buffer
	err := tar.NewWriter(&head).WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: file, Size: size, Mode: 0o644, ModTime: time.Unix(0, 0),
	})
	if err != nil {
		return nil, fmt.Errorf("file %q: %w: %w", file, err, errdefs.ErrFailedPrecondition)
	}
	const block = 512 // of a tar, which ends with two of them (POSIX pax)
	end := make([]byte, -size&(block-1)+2*block)
	return io.MultiReader(&head, &exactly{blob, size}, bytes.NewReader(end)), nil
}

// exactly delivers a blob that has as many bytes as its descriptor says.
type exactly struct {
	r    io.Reader
	left int64
}

func (e *exactly) Read(p []byte) (int, error) {
	n, err := e.r.Read(p)
	if e.left -= int64(n); e.left < 0 || errors.Is(err, io.EOF) && e.left > 0 {
		return 0, fmt.Errorf("the blob is not as long as its descriptor says: %w", errdefs.ErrDataLoss)
	}
	return n, err
}
