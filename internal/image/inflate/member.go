package inflate

import (
	"encoding/binary"
	"hash/crc32"
	"io"
)

// The bits of a member's flags (RFC 1952, 2.3.1).
const (
	hasHeaderSum = 1 << (iota + 1)
	hasExtra
	hasName
	hasComment
	reserved = 0xe0
)

// member reads a member's header. It returns io.EOF where there is none: the stream has ended.
func (z *Reader) member() error {
	var head [10]byte
	if err := z.raw(head[:1]); err != nil {
		if z.closed { // else it is the source's error
			return io.EOF
		}
		return err
	}
	if err := z.raw(head[1:]); err != nil {
		return err
	}
	if head[0] != 0x1f || head[1] != 0x8b || head[2] != 8 || head[3]&reserved != 0 {
		return corrupt("no gzip header")
	}
	sum := crc32.ChecksumIEEE(head[:])
	if err := z.skipOptional(head[3], &sum); err != nil {
		return err
	}
	if head[3]&hasHeaderSum != 0 {
		var b [2]byte
		if err := z.raw(b[:]); err != nil {
			return err
		}
		if binary.LittleEndian.Uint16(b[:]) != uint16(sum) {
			return corrupt("the header's sum is wrong")
		}
	}
	z.sum, z.size, z.floor, z.state = 0, 0, z.made, atBlock
	return nil
}

// skipOptional reads over what a header may have beyond its ten bytes.
func (z *Reader) skipOptional(flags byte, sum *uint32) error {
	var b [2]byte
	next := func(n int) error {
		err := z.raw(b[:n])
		*sum = crc32.Update(*sum, crc32.IEEETable, b[:n])
		return err
	}
	if flags&hasExtra != 0 {
		if err := next(2); err != nil {
			return err
		}
		for range binary.LittleEndian.Uint16(b[:]) {
			if err := next(1); err != nil {
				return err
			}
		}
	}
	for _, text := range []byte{hasName, hasComment} {
		if flags&text == 0 {
			continue
		}
		for b[0] = 1; b[0] != 0; {
			if err := next(1); err != nil {
				return err
			}
		}
	}
	return nil
}

// trailer compares a member's content with its sums.
func (z *Reader) trailer() error {
	z.align()
	var b [8]byte
	if err := z.raw(b[:]); err != nil {
		return err
	}
	if binary.LittleEndian.Uint32(b[:4]) != z.sum || binary.LittleEndian.Uint32(b[4:]) != z.size {
		return corrupt("the content does not match its sum")
	}
	z.state = atMember
	return nil
}

// raw reads whole bytes.
func (z *Reader) raw(p []byte) error {
	for i := range p {
		if err := z.need(8); err != nil {
			return err
		}
		p[i] = byte(z.take(8))
	}
	return nil
}
