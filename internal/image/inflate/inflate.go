// Package inflate decompresses gzip (RFC 1952, RFC 1951) for layers of images: most of what a pull costs
// is this. It is about twice as fast as the libraries that decode symbol by symbol (ADR 17), and every
// access is checked by the language: the input comes from outside, and root reads it.
//
// The way of a byte: source → in (a buffer, ended by zeros when the source has ended) → a bit buffer of 64
// → out (what the next copies may reach back to, then what the caller has not read yet) → the caller.
package inflate

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

const (
	window  = 32 << 10 // how far back a copy may reach
	outSize = 256 << 10
	inSize  = 64 << 10
	// inNeed is what one turn of the loop over symbols may load beyond its position; so many zeros end
	// the input.
	inNeed = 32
	// lengthBits is what a length takes at most, its own bits included. A turn goes on to a length with as
	// many after its literals.
	lengthBits = maxBits + 5
	// outNeed is what one turn may write: literals of a bit each, and the longest copy in whole steps.
	outNeed = 64 + 258 + 16
	// held is how many whole bytes the bit buffer may hold beyond those that were used.
	held = 7
)

// The buffers are larger than a masked index by what a word at it needs: so it needs no check.
type (
	inBuffer  [inSize + inNeed]byte
	outBuffer [outSize + 8]byte
)

// ErrCorrupt is wrapped by errors about content that is not gzip, or does not match its sums.
var ErrCorrupt = errors.New("corrupt gzip stream")

func corrupt(what string) error { return fmt.Errorf("%w: %s", ErrCorrupt, what) }

// Reader decompresses one gzip stream, of any number of members.
type Reader struct {
	src    io.Reader
	srcErr error // what src returned at last

	in     *inBuffer // read from src, with inNeed zeros behind it once src has ended
	at     int       // of in, the next byte that is not in bits
	end    int       // of in, where src's bytes end
	bits   uint64    // the next bits, the first one lowest; those above count agree with in[at:]
	count  uint      // of bits, how many were taken from in
	closed bool      // in was ended

	out   *outBuffer
	read  int // of out, what the caller has
	made  int // of out, what is decompressed
	floor int // of out, where the member's content begins

	err   error // for the caller, after out
	sum   uint32
	size  uint32
	state state
	final bool // the block is the member's last
	left  int  // of a stored block

	lit  litTable
	dist distTable
	pre  preTable
	lens [maxLit + maxDist]uint8
}

// state is what comes next in the stream.
type state int

const (
	atMember state = iota
	atBlock
	inStored
	inCodes
	atTrailer
)

// NewReader returns a reader of what r, a gzip stream, holds. It reads r in large pieces, to r's end.
func NewReader(r io.Reader) (*Reader, error) {
	z := &Reader{src: r, in: new(inBuffer), out: new(outBuffer)}
	if err := z.member(); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return z, nil
}

// Read implements io.Reader. A stream that ends too early is io.ErrUnexpectedEOF, one that makes no sense
// ErrCorrupt, and what the source failed with is returned as it is.
func (z *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for z.read == z.made {
		if z.err != nil {
			return 0, z.err
		}
		z.slide()
		from := z.made
		z.err = z.fill()
		z.sum = crc32.Update(z.sum, crc32.IEEETable, z.out[from:z.made])
		z.size += uint32(z.made - from)
	}
	n := copy(p, z.out[z.read:z.made])
	z.read += n
	return n, nil
}

// slide makes room behind what copies may reach back to.
func (z *Reader) slide() {
	if z.made < outSize/2 {
		return
	}
	by := z.made - window
	copy(z.out[:], z.out[by:z.made])
	z.made = window
	z.read = window
	z.floor = max(0, z.floor-by)
}

// fill decompresses until out is full, the member ends, or something is wrong. At the end of a member it
// returns after the last of its content, so that its sums are complete when they are looked at.
func (z *Reader) fill() error {
	for {
		var err error
		switch z.state {
		case atMember:
			err = z.member()
		case atBlock:
			err = z.block()
		case inStored:
			err = z.stored()
		case inCodes:
			err = z.codes()
		case atTrailer:
			err = z.trailer()
		}
		if err != nil {
			return err
		}
		if z.state == atTrailer && z.made > z.read || outSize-z.made < outNeed {
			return nil
		}
	}
}

// more reads until inNeed bytes are there, or ends the input with zeros. Bits stay as they are, and the
// whole bytes in them stay in reach of align.
func (z *Reader) more() error {
	if z.closed {
		if z.over() {
			return io.ErrUnexpectedEOF
		}
		return nil
	}
	back := int(z.count / 8)
	z.end = copy(z.in[:], z.in[z.at-back:z.end])
	z.at = back
	for empty := 0; z.end-z.at < inNeed && z.srcErr == nil; {
		n, err := z.src.Read(z.in[z.end:inSize])
		z.end += n
		z.srcErr = err
		if n > 0 {
			empty = 0
		} else if empty++; empty > 100 && err == nil {
			z.srcErr = io.ErrNoProgress
		}
	}
	if z.end-z.at >= inNeed {
		return nil
	}
	if z.srcErr != nil && !errors.Is(z.srcErr, io.EOF) {
		return z.srcErr
	}
	z.closed = true
	clear(z.in[z.end : z.end+inNeed])
	return nil
}

// over says that more bits were used than there are.
func (z *Reader) over() bool { return z.at-int(z.count/8) > z.end }

// limit is how far the loop over symbols may go in in before more is called. What the bit buffer holds
// of an input that has ended may lie behind the end.
func (z *Reader) limit() int {
	if z.closed {
		return z.end + held
	}
	return z.end - inNeed
}

// need makes n bits, at most 32, ready in bits.
func (z *Reader) need(n uint) error {
	for z.count < n {
		if z.at >= z.end {
			if err := z.more(); err != nil {
				return err
			}
			if z.at >= z.end {
				return io.ErrUnexpectedEOF
			}
		}
		z.bits &= 1<<z.count - 1
		z.bits |= uint64(z.in[z.at]) << z.count
		z.at++
		z.count += 8
	}
	return nil
}

// take returns and uses up n bits that are ready.
func (z *Reader) take(n uint) uint {
	v := uint(z.bits & (1<<n - 1))
	z.bits >>= n
	z.count -= n
	return v
}

// align goes to the next whole byte and gives back what bits holds beyond it.
func (z *Reader) align() {
	z.at -= int(z.count / 8)
	z.bits, z.count = 0, 0
}

// stored copies of a block that is not compressed.
func (z *Reader) stored() error {
	for z.left > 0 && z.made < outSize {
		if z.at >= z.end {
			if err := z.more(); err != nil {
				return err
			}
			if z.at >= z.end {
				return io.ErrUnexpectedEOF
			}
		}
		n := copy(z.out[z.made:outSize], z.in[z.at:min(z.end, z.at+z.left)])
		z.at += n
		z.made += n
		z.left -= n
	}
	if z.left == 0 {
		z.ended()
	}
	return nil
}

// ended is said at the end of a block.
func (z *Reader) ended() {
	z.state = atBlock
	if z.final {
		z.state = atTrailer
	}
}
