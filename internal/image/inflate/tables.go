package inflate

import "math/bits"

const (
	maxLit  = 288 // symbols of literals and lengths, with the two that mean nothing
	maxDist = 32
	maxBits = 15

	litBits  = 11
	distBits = 9
	preBits  = 7
)

// An entry says what the bits that lead to it stand for:
//
//	bits 0–7    how many bits to use up, those of the value's own included
//	bits 8–11   how many of them are the code
//	bit 12      literal
//	bit 13      a table of the next level, of as many bits as bits 8–11 say, at index value
//	bit 14      end of block
//	bit 15      no such code
//	bits 16–31  value: of a literal, the byte; of a length or distance, its least; else see above
type entry uint32

const (
	isLiteral entry = 1 << (12 + iota)
	isTable
	isEnd
	isWrong
)

func (e entry) value() uint   { return uint(e >> 16) }
func (e entry) used() uint    { return uint(e & 0xff) }
func (e entry) codeLen() uint { return uint(e>>8) & 15 }
func (e entry) extra(b uint64) uint {
	return uint(b&(1<<(e.used()&63)-1)) >> (e.codeLen() & 63)
}

// Tables are as large as the most that codes can need (for 15 bits: 2342 and 594, as zlib's enough.c
// counts), rounded so that a masked index needs no check.
type (
	litTable  [4096]entry
	distTable [1024]entry
	preTable  [1 << preBits]entry
)

// symbols are what the codes of an alphabet stand for, without the lengths of their codes.
var litSymbols, distSymbols, preSymbols = func() (l [maxLit]entry, d [maxDist]entry, p [19]entry) {
	for i := range 256 {
		l[i] = entry(i)<<16 | isLiteral
	}
	l[256] = isEnd
	least := uint(3)
	for i := range uint(28) { // RFC 1951, 3.2.5
		extra := uint(0)
		if i >= 8 {
			extra = i/4 - 1
		}
		l[257+i] = entry(least)<<16 | entry(extra)
		least += 1 << extra
	}
	l[285] = entry(258) << 16
	l[286], l[287] = isWrong, isWrong
	least = 1
	for i := range uint(30) {
		extra := uint(0)
		if i >= 4 {
			extra = i/2 - 1
		}
		d[i] = entry(least)<<16 | entry(extra)
		least += 1 << extra
	}
	d[30], d[31] = isWrong, isWrong
	for i := range p {
		p[i] = entry(i) << 16
	}
	return l, d, p
}()

// code is what a table is built of.
type code struct {
	symbols []entry
	lens    []uint8           // of the codes of symbols, in bits; 0 for one that does not occur
	count   [maxBits + 1]uint // of codes, by length
	next    [maxBits + 1]uint // code of each length to be given to a symbol
	sorted  [maxLit]uint16    // symbols by the lengths of their codes
	used    uint              // of sorted
	longest uint
}

// build fills a table, of first bits at its first level, from the lengths of the codes of symbols. It
// returns false for lengths that give no code: too many of them, or too few, but for a single one of one
// bit, or none (RFC 1951, 3.2.7), whose other bits are wrong where they come.
func build(table []entry, first uint, symbols []entry, lens []uint8) bool {
	c := code{symbols: symbols, lens: lens}
	if !c.sort() {
		if c.longest > 1 || c.count[1] > 1 {
			return false
		}
		for i := range table[:1<<first] {
			table[i] = isWrong
		}
	}
	return c.fill(table, first)
}

// sort puts the symbols into the order of their codes. It returns whether the codes use up all bits.
func (c *code) sort() (full bool) {
	for _, n := range c.lens {
		c.count[n]++
	}
	c.count[0] = 0
	var place [maxBits + 1]uint
	value := uint(0)
	for n := uint(1); n <= maxBits; n++ {
		c.next[n], place[n] = value, c.used
		value = (value + c.count[n]) << 1
		c.used += c.count[n]
		if c.count[n] > 0 {
			c.longest = n
		}
	}
	for s, n := range c.lens {
		if n > 0 {
			c.sorted[place[n]] = uint16(s)
			place[n]++
		}
	}
	return value == 1<<(maxBits+1)
}

// fill writes the entries. It returns false if the table is too small, which none is for its codes.
func (c *code) fill(table []entry, first uint) bool {
	free := uint(1) << first // where the next table of the second level begins
	var start, width uint    // of the one being filled
	prefix := ^uint(0)       // that leads to it
	for _, s := range c.sorted[:c.used] {
		n := uint(c.lens[s])
		value := uint(bits.Reverse16(uint16(c.next[n]))) >> (16 - n)
		c.next[n]++
		to, size, rest := uint(0), first, n
		if n > first {
			if p := value & (1<<first - 1); p != prefix {
				prefix, start, width = p, free, c.width(first, n)
				if free += 1 << width; free > uint(len(table)) {
					return false
				}
				table[p] = entry(start)<<16 | entry(width)<<8 | entry(first) | isTable
			}
			to, size, rest, value = start, width, n-first, value>>first
		}
		c.count[n]--
		e := c.symbols[s] + entry(rest) | entry(rest)<<8
		for i := value; i < 1<<size; i += 1 << rest {
			table[to+i] = e
		}
	}
	return true
}

// width is of how many bits the table of the second level must be that begins with a code of n bits: as
// many as the codes that are left need to fill it.
func (c *code) width(first, n uint) uint {
	width := n - first
	for room := 1<<width - int(c.count[n]); room > 0 && first+width < c.longest; {
		width++
		room = room<<1 - int(c.count[first+width])
	}
	return width
}
