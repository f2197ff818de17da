// Package logdriver is the plugin's side of Docker's LogDriver protocol: the frames that dockerd writes
// into a container's FIFO, and the requests that it makes of a plugin. It knows no container and no
// file; the keeper's worker does. It imports the standard library only, and neither net nor net/http,
// which would double the keeper's size.
package logdriver

import (
	"bytes"
	"encoding/binary"
	"iter"
	"time"

	"gantry/internal/crilog"
)

// Entry is one frame: a line of a container, or a piece of one. On the wire it is a LogEntry of Docker's
// protocol (entry.proto of its package logdriver) behind its length, a big-endian uint32.
type Entry struct {
	Source  crilog.Stream
	Time    int64  // ns since 1970
	Line    []byte // without its newline; shares memory with what was parsed
	Partial bool   // the line goes on in the source's next frame
}

// MaxFrame is the longest frame that dockerd writes, in bytes, with some room: it cuts lines to pieces of
// 16 KiB (defaultBufSize of Docker's package logger), and tells its plugins of no other size.
const MaxFrame = 17 << 10

const (
	lengthSize = 4
	// headSize are the bytes by which the start of a frame is known: its length and its source, which
	// comes first and is always there.
	headSize = lengthSize + 2 + len("stdout")
	// maxHead is what an entry has in the log besides its content, at most.
	maxHead = len("2006-01-02T15:04:05.999999999Z stdout P \n")
)

// Tags of LogEntry's fields, and of the metadata's last one: number<<3 + wire type.
const (
	tagSource   = 1<<3 + bytesType
	tagTime     = 2 << 3
	tagLine     = 3<<3 + bytesType
	tagPartial  = 4 << 3
	tagMetadata = 5<<3 + bytesType
	tagLast     = 1 << 3
	bytesType   = 2 // a number has 0
)

// starts says whether raw may begin with a frame.
func starts(raw []byte) bool {
	if len(raw) < headSize {
		return false
	}
	n := binary.BigEndian.Uint32(raw)
	source := string(raw[lengthSize+2 : headSize])
	return int(n) >= headSize-lengthSize && n <= MaxFrame && raw[lengthSize] == tagSource && raw[lengthSize+1] == byte(len(source)) &&
		(source == string(crilog.Stdout) || source == string(crilog.Stderr))
}

// next takes the first frame of raw. used is 0 when raw is the beginning of a frame only. Bytes that are
// none, as there may be where the beginning of a frame was lost, are used up to the next frame: then ok
// is false. Where nothing comes after raw, what would be a beginning is no frame either, and used is never 0.
func next(raw []byte, more bool) (e Entry, used int, ok bool) {
	if starts(raw) {
		n := lengthSize + int(binary.BigEndian.Uint32(raw))
		if len(raw) < n && more {
			return Entry{}, 0, false
		}
		if len(raw) >= n {
			if e, ok = parse(raw[lengthSize:n]); ok {
				return e, n, true
			}
		}
	}
	for i := 1; i <= len(raw)-headSize; i++ {
		if starts(raw[i:]) {
			return Entry{}, i, false
		}
	}
	if more {
		return Entry{}, max(0, len(raw)-headSize+1), false
	}
	return Entry{}, len(raw), false
}

// First takes the first frame of raw, which Ready gave out, and says how many bytes it has. Where raw begins
// with bytes that are no frame, ok is false and used is their number.
func First(raw []byte) (e Entry, used int, ok bool) { return next(raw, false) }

// All visits the frames of raw, which Ready gave out, and where in raw each ends.
func All(raw []byte) iter.Seq2[*Entry, int] {
	return func(yield func(*Entry, int) bool) {
		for n := 0; n < len(raw); {
			e, used, ok := First(raw[n:])
			n += used
			if ok && !yield(&e, n) {
				return
			}
		}
	}
}

// parse decodes one LogEntry.
func parse(msg []byte) (e Entry, ok bool) {
	ok = fields(msg, func(tag, number uint64, data []byte) {
		switch tag {
		case tagSource:
			e.Source = crilog.Stderr
			if string(data) == string(crilog.Stdout) {
				e.Source = crilog.Stdout
			}
		case tagTime:
			e.Time = int64(number)
		case tagLine:
			e.Line = data
		case tagPartial:
			e.Partial = number != 0
		case tagMetadata:
			// A line's last piece carries the mark of a piece, too.
			fields(data, func(tag, number uint64, _ []byte) {
				if tag == tagLast && number != 0 {
					e.Partial = false
				}
			})
		}
	})
	return e, ok && e.Source != ""
}

// fields calls each with the fields of a protobuf message: a number, or bytes.
func fields(msg []byte, each func(tag, number uint64, data []byte)) bool {
	for len(msg) > 0 {
		tag, n := binary.Uvarint(msg)
		if n <= 0 {
			return false
		}
		msg = msg[n:]
		number, n := binary.Uvarint(msg)
		if n <= 0 {
			return false
		}
		msg = msg[n:]
		switch tag & 7 {
		case 0:
			each(tag, number, nil)
		case bytesType:
			if number > uint64(len(msg)) {
				return false
			}
			each(tag, 0, msg[:number])
			msg = msg[number:]
		default: // the protocol has none
			return false
		}
	}
	return true
}

// Append appends e as a frame.
func Append(dst []byte, e *Entry) []byte {
	at := len(dst)
	dst = append(dst, 0, 0, 0, 0)
	dst = append(dst, tagSource, byte(len(e.Source)))
	dst = append(dst, e.Source...)
	dst = binary.AppendUvarint(append(dst, tagTime), uint64(e.Time))
	dst = binary.AppendUvarint(append(dst, tagLine), uint64(len(e.Line)))
	dst = append(dst, e.Line...)
	if e.Partial {
		dst = append(dst, tagPartial, 1)
	}
	binary.BigEndian.PutUint32(dst[at:], uint32(len(dst)-at-lengthSize))
	return dst
}

// Ready says how many bytes of raw, which starts with a frame, can be logged without waiting for more:
// whole frames, as far as Format of them fits into room bytes. First, All, Format and After find the same
// frames in so many bytes.
func Ready(raw []byte, room int) int {
	n := 0
	for {
		e, used, ok := next(raw[n:], true)
		if ok {
			// The content may hold no newline; see Format.
			room -= len(e.Line) + maxHead
		}
		if used == 0 || room < 0 {
			return n
		}
		n += used
	}
}

// Format appends the log entries of whole frames to dst: a piece of a line is tagged P, a line's end F,
// stamped with dockerd's time. It depends on its arguments alone, so that a batch that was interrupted can
// be made again byte for byte.
func Format(dst, raw []byte) []byte {
	for e := range All(raw) {
		dst = time.Unix(0, e.Time).UTC().AppendFormat(dst, time.RFC3339Nano)
		dst = append(append(append(dst, ' '), e.Source...), ' ', tagOf(e.Partial), ' ')
		at := len(dst)
		dst = append(dst, e.Line...)
		for i := bytes.IndexByte(dst[at:], '\n'); i >= 0; i = bytes.IndexByte(dst[at:], '\n') {
			dst[at+i] = ' ' // dockerd cuts at newlines; one here would forge an entry
		}
		dst = append(dst, '\n')
	}
	return dst
}

func tagOf(partial bool) byte {
	if partial {
		return 'P'
	}
	return 'F'
}

// Open are the sources whose line is not finished, one bit each.
type Open int64

// Of is the bit of a source.
func Of(s crilog.Stream) Open {
	if s == crilog.Stdout {
		return 1
	}
	return 2
}

// After is what is unfinished after raw, which is whole frames, if o was before.
func (o Open) After(raw []byte) Open {
	for e := range All(raw) {
		if e.Partial {
			o |= Of(e.Source)
		} else {
			o &^= Of(e.Source)
		}
	}
	return o
}
