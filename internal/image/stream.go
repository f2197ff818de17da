package image

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/semaphore"

	"gantry/internal/image/inflate"
)

const (
	pieceSize  = 256 << 10
	pieces     = 4        // read ahead of each stage
	zstdWindow = 32 << 20 // bytes of memory that the decompressors of all layers together may ask for
	// usualWindow is what every decompressor should have (RFC 8878, 3.1.1.1.2): the frames of a layer may
	// ask for more than the first of them does.
	usualWindow = 8 << 20
)

// windows is the memory that decompressors may take; who asks for what is not left waits.
type windows struct{ *semaphore.Weighted }

func newWindows() windows { return windows{semaphore.NewWeighted(zstdWindow)} }

// take waits for the window that the zstd frame asks for which begins with head, and returns how large
// windows may be.
func (w windows) take(ctx context.Context, head []byte) (size int64, err error) {
	var h zstd.Header
	if err := h.Decode(head); err != nil {
		return 0, fmt.Errorf("zstd: %w: %w", err, errdefs.ErrDataLoss)
	}
	if h.WindowSize > zstdWindow {
		return 0, tooWide(fmt.Sprintf("of %d MiB", h.WindowSize>>20), zstdWindow)
	}
	size = max(int64(h.WindowSize), usualWindow)
	if err := w.Acquire(ctx, size); err != nil {
		return 0, context.Cause(ctx)
	}
	return size, nil
}

func tooWide(window string, most int64) error {
	return fmt.Errorf("zstd: the layer asks for a window %s, more than the %d MiB that it may have: %w", window, most>>20, errdefs.ErrResourceExhausted)
}

// stream runs download, decompression (open) and consume side by side. It reads blob to its end even
// where the compressed stream ends before, because only the end tells that the blob was whole. Content
// that makes no sense is explained by a blob that was not what it should be, if that is so. Abort makes
// reads of blob return soon.
func stream[T any](ctx context.Context, abort func(), blob io.Reader,
	open func(io.Reader) (*reading, error), consume func(io.Reader) (T, error),
) (T, error) {
	compressed := readAhead(ctx, blob)
	defer func() { abort(); compressed.stop() }()
	v, err := opened(ctx, compressed, open, consume)
	switch {
	case compressed.failure != nil:
		return v, compressed.failure
	case err == nil || errdefs.IsDataLoss(err) || errdefs.IsInvalidArgument(err):
		if _, blobErr := io.Copy(io.Discard, compressed); blobErr != nil {
			return v, blobErr
		}
	default:
		abort()
	}
	return v, err
}

// opened runs consume on what open makes of compressed, decompressing in a goroutine that has ended
// when it returns.
func opened[T any](ctx context.Context, compressed *ahead,
	open func(io.Reader) (*reading, error), consume func(io.Reader) (T, error),
) (v T, err error) {
	r, err := open(compressed)
	if err != nil {
		return v, err
	}
	defer r.done()
	tar := readAhead(ctx, r.tar)
	defer tar.stop()
	return consume(tar)
}

var (
	gzipMagic = []byte{0x1f, 0x8b}
	zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}
	zstdSkip  = []byte{0x2a, 0x4d, 0x18} // after one of sixteen bytes
)

// isZstd recognises a frame, and one to be skipped, with which pzstd begins (RFC 8878, 3.1.2).
func isZstd(head []byte) bool {
	return bytes.HasPrefix(head, zstdMagic) || len(head) == 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:], zstdSkip)
}

// decompress finds the compression by its first bytes: media types are often wrong about it.
func decompress(ctx context.Context, w windows, br *bufio.Reader) (plain io.Reader, done func(), err error) {
	head, err := br.Peek(len(zstdMagic))
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	switch {
	case bytes.HasPrefix(head, gzipMagic):
		z, err := inflate.NewReader(br)
		if err != nil {
			return nil, nil, fmt.Errorf("gzip: %w: %w", err, errdefs.ErrDataLoss)
		}
		return &decoded{r: z, kind: "gzip"}, func() {}, nil
	case isZstd(head):
		head, err := br.Peek(zstd.HeaderMaxSize)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, nil, err
		}
		size, err := w.take(ctx, head)
		if err != nil {
			return nil, nil, err
		}
		z, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(uint64(size)), zstd.WithDecoderLowmem(true))
		if err != nil {
			w.Release(size)
			return nil, nil, fmt.Errorf("zstd: %w: %w", err, errdefs.ErrDataLoss)
		}
		return &decoded{z, "zstd", size}, func() { z.Close(); w.Release(size) }, nil
	}
	return br, func() {}, nil
}

// decoded gives a decompressor's complaints their class.
type decoded struct {
	r      io.Reader
	kind   string
	window int64 // that zstd may have
}

func (d *decoded) Read(p []byte) (int, error) {
	n, err := d.r.Read(p)
	switch {
	case errors.Is(err, zstd.ErrWindowSizeExceeded):
		err = tooWide("larger than its beginning says", d.window)
	case err != nil && !errors.Is(err, io.EOF):
		err = fmt.Errorf("%s: %w: %w", d.kind, err, errdefs.ErrDataLoss)
	}
	return n, err
}

// verifier takes the digest of what passes through it.
type verifier struct {
	r        io.Reader
	want     digest.Digest // "" if it is not known
	digester digest.Digester
}

func newVerifier(r io.Reader, want digest.Digest) *verifier {
	algorithm := digest.Canonical
	if want != "" {
		algorithm = want.Algorithm()
	}
	return &verifier{r: r, want: want, digester: algorithm.Digester()}
}

func (v *verifier) Read(p []byte) (int, error) {
	n, err := v.r.Read(p)
	_, _ = v.digester.Hash().Write(p[:n])
	return n, err
}

// end returns the digest of all that was read, which must be the one that is wanted.
func (v *verifier) end() (digest.Digest, error) {
	got := v.digester.Digest()
	if v.want != "" && got != v.want {
		return got, fmt.Errorf("the layer's content has diff id %s, its config says %s: %w", got, v.want, errdefs.ErrDataLoss)
	}
	return got, nil
}

// ahead reads a stream in a goroutine of its own.
type ahead struct {
	full  chan []byte
	free  chan []byte
	quit  chan struct{}
	ended chan struct{}
	err   error // why the goroutine ended; set before full is closed

	// of the reading side
	cur     []byte // what of the current piece was not read yet
	piece   []byte // the current piece
	failure error  // what Read returned at last, if not io.EOF
}

func readAhead(ctx context.Context, r io.Reader) *ahead {
	a := &ahead{
		full:  make(chan []byte, pieces),
		free:  make(chan []byte, pieces),
		quit:  make(chan struct{}),
		ended: make(chan struct{}),
	}
	for range pieces {
		a.free <- make([]byte, pieceSize)
	}
	go a.run(ctx, r)
	return a
}

func (a *ahead) run(ctx context.Context, r io.Reader) {
	defer close(a.ended)
	defer close(a.full)
	for {
		var p []byte
		select {
		case p = <-a.free:
		case <-a.quit:
			a.err = io.ErrClosedPipe
			return
		case <-ctx.Done():
			a.err = context.Cause(ctx)
			return
		}
		n, err := r.Read(p[:cap(p)])
		if n > 0 {
			a.full <- p[:n] // never blocks: there are no more pieces than places
		}
		if err != nil {
			a.err = err
			return
		}
		if n == 0 {
			a.free <- p
		}
	}
}

func (a *ahead) Read(p []byte) (int, error) {
	for len(a.cur) == 0 {
		if a.piece != nil {
			a.free <- a.piece
			a.piece = nil
		}
		piece, ok := <-a.full
		if !ok {
			if !errors.Is(a.err, io.EOF) {
				a.failure = a.err
			}
			return 0, a.err
		}
		a.piece, a.cur = piece, piece
	}
	n := copy(p, a.cur)
	a.cur = a.cur[n:]
	return n, nil
}

// stop ends the goroutine and waits for it. Reading on gives what was read before, then an error.
func (a *ahead) stop() {
	select {
	case <-a.quit:
	default:
		close(a.quit)
	}
	<-a.ended
}
