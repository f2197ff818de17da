package remote

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Blob returns a reader of desc's content. A broken connection is resumed where it broke. The end of
// the content is told (io.EOF) only when its length and digest are what desc says; before that the
// bytes must not be trusted. Progress, if set, is called after each read with the bytes so far.
func (s *Session) Blob(ctx context.Context, desc ocispec.Descriptor, progress func(done int64)) io.ReadCloser {
	if progress == nil {
		progress = func(int64) {}
	}
	b := &blob{session: s, desc: desc, progress: progress, outer: ctx}
	if err := desc.Digest.Validate(); err != nil {
		b.err = fmt.Errorf("digest %q: %w", desc.Digest, errdefs.ErrFailedPrecondition)
		return b
	}
	b.verifier = desc.Digest.Algorithm().Digester()
	b.watch = s.client.watch(log.WithLogger(ctx, s.client.quiet))
	return b
}

type blob struct {
	session  *Session
	desc     ocispec.Descriptor
	progress func(int64)
	verifier digest.Digester
	outer    context.Context
	watch    *watch

	body   io.ReadCloser
	done   int64
	failed int   // attempts since the last byte
	err    error // sticky
}

func (b *blob) Read(p []byte) (int, error) {
	for b.err == nil {
		n, err := b.read(p)
		if n > 0 {
			b.failed = 0
			b.done += int64(n)
			_, _ = b.verifier.Hash().Write(p[:n])
			b.progress(b.done)
		}
		switch {
		case errors.Is(err, io.EOF) && b.done >= b.desc.Size:
			b.err = b.verify()
		case err != nil:
			b.err = b.again(err)
		}
		if n > 0 {
			return n, nil
		}
	}
	return 0, b.err
}

func (b *blob) read(p []byte) (int, error) {
	n, err := b.receive(p)
	if limit := b.session.client.rate; limit != nil && n > 0 {
		if late := limit.WaitN(b.watch.ctx, n); late != nil {
			return n, late
		}
	}
	return n, err
}

func (b *blob) receive(p []byte) (int, error) {
	if b.session.client.rate != nil {
		p = p[:min(len(p), burst)]
	}
	b.watch.start()
	defer b.watch.stop()
	if b.body == nil {
		if err := b.open(); err != nil {
			return 0, err
		}
	}
	return b.body.Read(p)
}

func (b *blob) open() error {
	f, err := b.session.fetcher(b.watch.ctx)
	if err != nil {
		return err
	}
	if b.body, err = b.fetch(f, b.done); rangeRefused(err) && b.done > 0 {
		b.body, err = b.fetch(f, 0)
		if err == nil {
			_, err = io.CopyN(io.Discard, b.body, b.done)
		}
	}
	return err
}

// fetch asks for the content from offset on.
func (b *blob) fetch(f remotes.Fetcher, offset int64) (io.ReadCloser, error) {
	body, err := f.Fetch(b.watch.ctx, b.desc)
	if err != nil || offset == 0 {
		return body, err
	}
	seeker, ok := body.(io.ReadSeekCloser)
	if !ok {
		_ = body.Close()
		return nil, fmt.Errorf("resume at byte %d: %w", offset, errdefs.ErrNotImplemented)
	}
	if _, err = seeker.Seek(offset, io.SeekStart); err == nil {
		_, err = seeker.Read(nil) // sends the request
	}
	if err != nil {
		_ = body.Close()
		return nil, err
	}
	return body, nil
}

// again decides whether to resume after err: nil means that the next read opens a new connection.
func (b *blob) again(err error) error {
	if errors.Is(err, io.EOF) { // the connection ended early but cleanly
		err = fmt.Errorf("%w after %d of %d bytes", io.ErrUnexpectedEOF, b.done, b.desc.Size)
	}
	if err = b.watch.classify(err); wrongSize(err) {
		err = fmt.Errorf("the blob does not have the %d bytes that it should have: %s: %w", b.desc.Size, err.Error(), errdefs.ErrDataLoss)
	}
	b.drop()
	b.failed++
	if !temporary(err) || b.failed >= b.session.client.opts.Attempts {
		return fmt.Errorf("fetch %s: %w", b.desc.Digest, err)
	}
	if err = b.session.client.pause(b.outer, b.failed, err); err != nil {
		return fmt.Errorf("fetch %s: %w", b.desc.Digest, err)
	}
	return nil
}

// verify returns io.EOF when the content is what was promised.
func (b *blob) verify() error {
	b.drop()
	if got := b.verifier.Digest(); got != b.desc.Digest {
		return fmt.Errorf("content of %s has digest %s: %w", b.desc.Digest, got, errdefs.ErrDataLoss)
	}
	return io.EOF
}

func (b *blob) drop() {
	if b.body != nil {
		_ = b.body.Close()
		b.body = nil
	}
}

func (b *blob) Close() error {
	b.drop()
	if b.watch != nil {
		b.watch.end()
	}
	if b.err == nil {
		b.err = fmt.Errorf("read after close: %w", errdefs.ErrFailedPrecondition)
	}
	return nil
}
