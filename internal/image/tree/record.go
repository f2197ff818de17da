package tree

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	"github.com/cespare/xxhash/v2"
	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
)

// A record is a header, uncompressed, and a zstd frame with a checksum, in which are pieces: a byte
// that says which kind and what belongs to the kind. Numbers are varints, strings have their length
// before them.
const (
	header = "gantry tree 1\n"

	pieceEnd     = 0 // of the record
	pieceRaw     = 1 // bytes of the tar
	pieceContent = 2 // length and checksum of a file's content, which comes here in the tar
	pieceApart   = 3 // the same of a content that the tar has in another form: a sparse file's
	pieceEntry   = 4

	rawSize  = 32 << 10 // bytes of a raw piece, at most
	maxField = 1 << 20  // bytes of a string, at most: a PAX header's limit
	window   = 256 << 10
)

// Writer makes a record while a layer is unpacked. Its first error is told by Finish; after it nothing
// more is written.
type Writer struct {
	f        *os.File
	z        *zstd.Encoder
	out      *bufio.Writer
	err      error
	raw      []byte
	sum      hash.Hash64
	size     int64
	contents int
	byInode  map[uint64]int
	scratch  []byte
}

// Create begins a record in a new file at path.
func Create(path string) (*Writer, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("record of layer: %w", err)
	}
	w := &Writer{f: f, sum: xxhash.New(), byInode: make(map[uint64]int)}
	_, w.err = f.WriteString(header)
	z, err := zstd.NewWriter(f, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(window), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("record of layer: %w", err), f.Close())
	}
	w.z, w.out = z, bufio.NewWriterSize(z, rawSize)
	return w, nil
}

// Raw notes the next bytes of the tar that are in no file.
func (w *Writer) Raw(p []byte) {
	for len(p) > 0 {
		n := min(len(p), rawSize-len(w.raw))
		w.raw = append(w.raw, p[:n]...)
		if p = p[n:]; len(w.raw) == rawSize {
			w.flushRaw()
		}
	}
}

func (w *Writer) flushRaw() {
	if len(w.raw) > 0 {
		w.kind(pieceRaw)
		w.text(string(w.raw))
		w.raw = w.raw[:0]
	}
}

// Content notes the next bytes of a file's content.
func (w *Writer) Content(p []byte) {
	_, _ = w.sum.Write(p) // a hash never fails
	w.size += int64(len(p))
}

// File ends a content: it is that of the file with this inode number. Apart says that the tar's own
// bytes of it were given to Raw.
func (w *Writer) File(inode uint64, apart bool) {
	w.putSum(Sum{Size: w.size, Value: w.sum.Sum64(), Apart: apart})
	w.byInode[inode] = w.contents
	w.sum.Reset()
	w.size = 0
}

func (w *Writer) putSum(s Sum) {
	w.flushRaw()
	if s.Apart {
		w.kind(pieceApart)
	} else {
		w.kind(pieceContent)
	}
	w.number(uint64(s.Size))
	w.bytes(binary.LittleEndian.AppendUint64(w.scratch[:0], s.Value))
	w.contents++
}

// Finish notes what is in dir, where the layer was unpacked, and closes the record. Xattrs says
// whether the layer brought any.
func (w *Writer) Finish(dir string, xattrs bool) error {
	for e, err := range Scan(dir, xattrs) {
		if err != nil {
			w.err = errors.Join(w.err, err)
			break
		}
		if e.Regular() {
			e.Content = w.byInode[e.inode]
		}
		w.putEntry(&e)
	}
	return w.end()
}

func (w *Writer) end() error {
	w.flushRaw()
	w.kind(pieceEnd)
	err := errors.Join(w.err, w.out.Flush(), w.z.Close(), w.f.Close())
	if err != nil {
		return fmt.Errorf("record of layer: %w", err)
	}
	return nil
}

// Abort gives a record up.
func (w *Writer) Abort() {
	_ = w.z.Close()
	_ = w.f.Close()
}

func (w *Writer) putEntry(e *Entry) {
	w.flushRaw()
	w.kind(pieceEntry)
	w.text(e.Path)
	for _, n := range []uint64{
		uint64(e.Mode), uint64(e.UID), uint64(e.GID), uint64(e.Size), uint64(e.Sec), uint64(e.Nsec),
		e.Device, uint64(e.Content), uint64(len(e.Xattrs)),
	} {
		w.number(n)
	}
	for _, name := range e.sorted() {
		w.text(name)
		w.text(e.Xattrs[name])
	}
	w.text(e.Target)
}

func (w *Writer) kind(k byte)     { w.bytes(append(w.scratch[:0], k)) }
func (w *Writer) number(n uint64) { w.bytes(binary.AppendUvarint(w.scratch[:0], n)) }

func (w *Writer) text(s string) {
	w.number(uint64(len(s)))
	if w.err == nil {
		_, w.err = w.out.WriteString(s)
	}
}

func (w *Writer) bytes(p []byte) {
	w.scratch = p
	if w.err == nil {
		_, w.err = w.out.Write(p)
	}
}

// Sum is what is known of a file's content.
type Sum struct {
	Size  int64
	Value uint64 // XXH64
	Apart bool   // the tar has it in another form, among the raw bytes
}

// Visitor is told what a record says, in its order. A function that is nil is not called.
type Visitor struct {
	Raw     func(p []byte) error
	Content func(Sum) error
	Entry   func(e *Entry) error
}

// Read reads the record at path. One that is absent or makes no sense is ErrDataLoss.
func Read(path string, v Visitor) error {
	f, err := os.Open(path)
	if err != nil {
		return lost(err)
	}
	defer func() { _ = f.Close() }()
	return Decode(f, v)
}

func lost(err error) error { return fmt.Errorf("record of layer: %w: %w", err, errdefs.ErrDataLoss) }

// Decode is Read for what is not a file.
func Decode(from io.Reader, v Visitor) error {
	head := make([]byte, len(header))
	if _, err := io.ReadFull(from, head); err != nil || string(head) != header {
		return lost(errors.Join(err, errors.New("it does not begin as it should")))
	}
	z, err := zstd.NewReader(from, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(1<<20), zstd.WithDecoderLowmem(true))
	if err != nil {
		return lost(err)
	}
	defer z.Close()
	r := &reader{in: bufio.NewReaderSize(z, rawSize)}
	for {
		kind, err := r.in.ReadByte()
		if err != nil {
			return lost(err)
		}
		if kind == pieceEnd {
			if _, err := r.in.ReadByte(); err != io.EOF { // what follows must be the frame's good checksum
				return lost(errors.Join(err, errors.New("it goes on after its end")))
			}
			return nil
		}
		if err := r.piece(kind, v); err != nil {
			return err
		}
	}
}

type reader struct {
	in  *bufio.Reader
	err error // of the numbers and texts of a piece
	buf []byte
}

// piece reads a piece of this kind and tells v about it.
func (r *reader) piece(kind byte, v Visitor) error {
	switch kind {
	case pieceRaw:
		p := r.bytes()
		return r.tell(v.Raw != nil, func() error { return v.Raw(p) })
	case pieceContent, pieceApart:
		s := Sum{Size: int64(r.number()), Apart: kind == pieceApart}
		var sum [8]byte
		if r.err == nil {
			_, r.err = io.ReadFull(r.in, sum[:])
		}
		s.Value = binary.LittleEndian.Uint64(sum[:])
		return r.tell(v.Content != nil, func() error { return v.Content(s) })
	case pieceEntry:
		e := r.entry()
		return r.tell(v.Entry != nil, func() error { return v.Entry(e) })
	}
	return lost(fmt.Errorf("it has a piece of kind %d", kind))
}

func (r *reader) tell(wanted bool, visit func() error) error {
	if r.err != nil {
		return lost(r.err)
	}
	if !wanted {
		return nil
	}
	return visit()
}

func (r *reader) entry() *Entry {
	e := &Entry{Path: string(r.bytes())}
	e.Mode, e.UID, e.GID = uint32(r.number()), uint32(r.number()), uint32(r.number())
	e.Size, e.Sec, e.Nsec = int64(r.number()), int64(r.number()), int64(r.number())
	e.Device, e.Content = r.number(), int(r.number())
	if n := r.number(); n > 0 && r.err == nil {
		e.Xattrs = make(map[string]string)
		for range n {
			name := string(r.bytes())
			e.Xattrs[name] = string(r.bytes())
			if r.err != nil {
				return e
			}
		}
	}
	e.Target = string(r.bytes())
	return e
}

func (r *reader) number() (n uint64) {
	if r.err == nil {
		n, r.err = binary.ReadUvarint(r.in)
	}
	return n
}

// bytes returns the next text, which is there until the next call.
func (r *reader) bytes() []byte {
	n := r.number()
	if r.err == nil && n > maxField {
		r.err = fmt.Errorf("a field of %d bytes", n)
	}
	if r.err != nil {
		return nil
	}
	if uint64(cap(r.buf)) < n {
		r.buf = make([]byte, n)
	}
	_, r.err = io.ReadFull(r.in, r.buf[:n])
	return r.buf[:n]
}

// Derive makes a record at path of the one at base, with the entries as change leaves them.
func Derive(base, path string, change func(*Entry)) error {
	w, err := Create(path)
	if err != nil {
		return err
	}
	err = Read(base, Visitor{
		Raw:     func(p []byte) error { w.Raw(p); return nil },
		Content: func(s Sum) error { w.putSum(s); return nil },
		Entry:   func(e *Entry) error { change(e); w.putEntry(e); return nil },
	})
	if err != nil {
		w.Abort()
		return err
	}
	return w.end()
}
