package inflate

import (
	"encoding/binary"
	"io"
)

// codes decompresses a block's content until it ends or out is full.
func (z *Reader) codes() error {
	for {
		if z.at > z.limit() {
			if err := z.more(); err != nil {
				return err
			}
		}
		full, before := outSize-outNeed, z.made
		if z.closed {
			full = before // one turn at a time, to know what the zeros behind the input made
		}
		done, err := z.symbols(full)
		switch {
		case z.closed && z.over():
			z.made = before
			return io.ErrUnexpectedEOF
		case err != nil:
			return err
		case done:
			z.ended()
			return nil
		case outSize-z.made < outNeed:
			return nil
		}
	}
}

// symbols is the loop that a pull's time is spent in. It runs while one turn is sure to find its input,
// and no more than full bytes are made, and returns true at the end of the block. A turn begins with at
// least 56 bits and the entry they lead to, looked up before the copy of the turn before: so the processor
// does both at once.
func (z *Reader) symbols(full int) (done bool, err error) {
	in, at, limit := z.in, z.at, z.limit()
	out, made := z.out, z.made
	hold, count, floor := z.bits, z.count, z.floor
	lit, dist := &z.lit, &z.dist
	if at > limit || made > full {
		return false, nil
	}
	hold, count, at = in.load(hold, count, at)
	e := lit[hold&(1<<litBits-1)]
	for at <= limit && made <= full {
		for e&isLiteral != 0 && count >= lengthBits+litBits {
			out[made&(outSize-1)] = byte(e >> 16)
			made++
			hold >>= e.used() & 63
			count -= e.used()
			e = lit[hold&(1<<litBits-1)]
		}
		if e&isTable != 0 {
			hold >>= litBits
			count -= litBits
			e = lit[(e.value()+uint(hold)&(1<<e.codeLen()-1))%uint(len(lit))]
		}
		length := int(e.value() + e.extra(hold))
		hold >>= e.used() & 63
		count -= e.used()
		if e&(isLiteral|isEnd|isWrong) != 0 {
			if e&isLiteral != 0 {
				out[made&(outSize-1)] = byte(length)
				made++
				hold, count, at = in.load(hold, count, at)
				e = lit[hold&(1<<litBits-1)]
				continue
			}
			if done = e&isEnd != 0; !done {
				err = corrupt("no such code")
			}
			break
		}

		hold, count, at = in.load(hold, count, at)
		e = dist[hold&(1<<distBits-1)]
		if e&isTable != 0 {
			hold >>= distBits
			count -= distBits
			e = dist[(e.value()+uint(hold)&(1<<e.codeLen()-1))%uint(len(dist))]
		}
		from := made - int(e.value()+e.extra(hold))
		if e&isWrong != 0 || from < floor {
			err = corrupt("a copy from before the beginning")
			break
		}
		hold >>= e.used() & 63
		count -= e.used()

		hold, count, at = in.load(hold, count, at)
		e = lit[hold&(1<<litBits-1)]
		out.again(from, made, length)
		made += length
	}
	z.at, z.made, z.bits, z.count = at, made, hold, count
	return done, err
}

// again writes length bytes at index to that begin at index from: some of them may be written by it. It
// may write up to 15 bytes more.
func (b *outBuffer) again(from, to, length int) {
	end := to + length
	switch by := to - from; {
	case by >= 8:
		for ; to < end; to, from = to+16, from+16 {
			b.put(to, b.word(from))
			b.put(to+8, b.word(from+8))
		}
	case by == 1:
		for same := uint64(b[from&(outSize-1)]) * 0x0101010101010101; to < end; to += 8 {
			b.put(to, same)
		}
	default: // the first bytes of a word are right, as many as are repeated
		for ; to < end; to, from = to+by, from+by {
			b.put(to, b.word(from))
		}
	}
}

// load fills up hold, of which count bits are known, from index at.
func (b *inBuffer) load(hold uint64, count uint, at int) (uint64, uint, int) {
	return hold | binary.LittleEndian.Uint64(b[at&(inSize-1):])<<(count&63), count | 56, at + int(63-count)>>3
}

func (b *outBuffer) word(i int) uint64      { return binary.LittleEndian.Uint64(b[i&(outSize-1):]) }
func (b *outBuffer) put(i int, word uint64) { binary.LittleEndian.PutUint64(b[i&(outSize-1):], word) }
