package inflate

import "encoding/binary"

// preOrder is the order of the lengths of the codes of lengths (RFC 1951, 3.2.7).
var preOrder = [...]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// block reads a block's header.
func (z *Reader) block() error {
	if err := z.need(3); err != nil {
		return err
	}
	z.final = z.take(1) == 1
	switch z.take(2) {
	case 0:
		z.align()
		var b [4]byte
		if err := z.raw(b[:]); err != nil {
			return err
		}
		n := binary.LittleEndian.Uint16(b[:2])
		if n != ^binary.LittleEndian.Uint16(b[2:]) {
			return corrupt("a stored block has two lengths")
		}
		z.left, z.state = int(n), inStored
		return nil
	case 1:
		z.fixed()
	case 2:
		if err := z.dynamic(); err != nil {
			return err
		}
	default:
		return corrupt("a block of no known type")
	}
	z.state = inCodes
	return nil
}

// fixed makes the tables that the format has for short blocks.
func (z *Reader) fixed() {
	lens := z.lens[:maxLit+maxDist]
	for i := range lens {
		switch {
		case i < 144:
			lens[i] = 8
		case i < 256:
			lens[i] = 9
		case i < 280:
			lens[i] = 7
		case i < maxLit:
			lens[i] = 8
		default:
			lens[i] = 5
		}
	}
	build(z.lit[:], litBits, litSymbols[:], lens[:maxLit])
	build(z.dist[:], distBits, distSymbols[:], lens[maxLit:])
}

// dynamic reads a block's own tables.
func (z *Reader) dynamic() error {
	if err := z.need(14); err != nil {
		return err
	}
	nLit, nDist, nPre := int(z.take(5))+257, int(z.take(5))+1, int(z.take(4))+4
	if nLit > 286 || nDist > 30 {
		return corrupt("a block has too many codes")
	}
	var pre [19]uint8
	for _, s := range preOrder[:nPre] {
		if err := z.need(3); err != nil {
			return err
		}
		pre[s] = uint8(z.take(3))
	}
	if !build(z.pre[:], preBits, preSymbols[:], pre[:]) {
		return corrupt("lengths of the codes of lengths")
	}
	if err := z.lengths(z.lens[:nLit+nDist]); err != nil {
		return err
	}
	if !build(z.lit[:], litBits, litSymbols[:], z.lens[:nLit]) || !build(z.dist[:], distBits, distSymbols[:], z.lens[nLit:nLit+nDist]) {
		return corrupt("lengths of codes")
	}
	return nil
}

// lengths reads the lengths of codes.
func (z *Reader) lengths(lens []uint8) error {
	for i := 0; i < len(lens); {
		s, err := z.preSymbol()
		if err != nil {
			return err
		}
		if s < 16 {
			lens[i] = uint8(s)
			i++
			continue
		}
		repeat, extra, value := uint(3), uint(2), uint8(0)
		switch {
		case s == 16 && i == 0:
			return corrupt("a length is repeated before the first")
		case s == 16:
			value = lens[i-1]
		case s == 17:
			extra = 3
		default:
			repeat, extra = 11, 7
		}
		if err := z.need(extra); err != nil {
			return err
		}
		repeat += z.take(extra)
		if int(repeat) > len(lens)-i {
			return corrupt("a length is repeated too often")
		}
		for range repeat {
			lens[i] = value
			i++
		}
	}
	return nil
}

// preSymbol reads a code of a length. Near the end of the input there may be fewer bits than the longest
// code has.
func (z *Reader) preSymbol() (uint, error) {
	for n := uint(1); ; n++ {
		if err := z.need(n); err != nil {
			return 0, err
		}
		e := z.pre[z.bits&(1<<n-1)]
		if e.used() == n && e&isWrong == 0 {
			z.take(n)
			return e.value(), nil
		}
		if n == preBits {
			return 0, corrupt("no such code of a length")
		}
	}
}
