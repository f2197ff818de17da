// Package crilog formats and parses the log file of a container as the CRI defines it: one entry a
// line, "<RFC3339Nano stamp> <stdout|stderr> <P|F> <content>". An entry tagged P is followed by the
// rest of its line in the next entry of the same stream; F ends a line.
package crilog

import (
	"bytes"
	"errors"
	"fmt"
	"time"
)

// MaxPiece is the most content one entry carries, in bytes; a longer line is cut into pieces.
const MaxPiece = 16 << 10

// Stream is the stream an entry came from, as written in the file.
type Stream string

// The two streams. A terminal's output is Stdout.
const (
	Stdout Stream = "stdout"
	Stderr Stream = "stderr"
)

// maxHead is the longest "stamp stream tag " before the content, and the newline after it.
const maxHead = len("2006-01-02T15:04:05.999999999Z stdout P \n")

// ErrFormat is wrapped by Parse for a line that is no entry.
var ErrFormat = errors.New("not a CRI log entry")

// Entry is one line of the log file.
type Entry struct {
	Time    time.Time
	Stream  Stream
	Partial bool   // the line goes on in the stream's next entry
	Content []byte // without the line's newline; shares memory with the parsed line
}

// Ready says how many bytes of raw, the output of a stream that starts at an entry's start, can be
// logged without waiting for more: whole lines, and pieces of a line that is already longer than
// MaxPiece, as far as Format of them fits into room bytes.
func Ready(raw []byte, room int) int {
	if n := wholeLines(raw); n > 0 {
		lines := bytes.Count(raw[:n], newline)
		if n+lines*(maxHead-1) <= room {
			return n
		}
	}
	n := 0
	for rest := raw; ; {
		take, need := next(rest)
		if take == 0 || need > room {
			return n
		}
		n, room, rest = n+take, room-need, rest[take:]
	}
}

var newline = []byte{'\n'}

// wholeLines is the length of the lines in raw that have their end, 0 if there is one in it that is cut.
func wholeLines(raw []byte) (n int) {
	for len(raw)-n > MaxPiece {
		last := bytes.LastIndexByte(raw[n:n+MaxPiece+1], '\n')
		if last < 0 {
			return 0
		}
		n += last + 1
	}
	return n + bytes.LastIndexByte(raw[n:], '\n') + 1
}

// Skip returns the length of what the first entries of Format(raw) were made of.
func Skip(raw []byte, entries int) int {
	n := 0
	for ; entries > 0 && n < len(raw); entries-- {
		take, _ := next(raw[n:])
		if take == 0 {
			return len(raw)
		}
		n += take
	}
	return n
}

// next returns the length of the entry at the start of raw that is complete, 0 if there is none,
// and the bytes it takes in the file.
func next(raw []byte) (take, need int) {
	if i := bytes.IndexByte(raw[:min(len(raw), MaxPiece+1)], '\n'); i >= 0 {
		return i + 1, i + maxHead
	}
	if len(raw) > MaxPiece {
		return MaxPiece, MaxPiece + maxHead
	}
	return 0, 0
}

// Format appends the entries of raw to dst. It depends on its arguments alone, so that a batch
// that was interrupted can be made again byte for byte. An unfinished last line is tagged P.
func Format(dst []byte, at time.Time, s Stream, raw []byte) []byte {
	var buf [64]byte
	head := at.UTC().AppendFormat(buf[:0], time.RFC3339Nano)
	head = append(append(append(head, ' '), s...), " F "...)
	tag := &head[len(head)-2]
	for len(raw) > 0 {
		take, _ := next(raw)
		if take == 0 {
			take = len(raw)
		}
		if raw[take-1] == '\n' {
			dst = append(append(dst, head...), raw[:take]...)
		} else {
			*tag = 'P'
			dst = append(append(append(dst, head...), raw[:take]...), '\n')
			*tag = 'F'
		}
		raw = raw[take:]
	}
	return dst
}

// Parse reads one line of a log file, with or without its newline. Tags after P and F, separated
// by colons, are allowed and ignored, as the CRI has it.
func Parse(line []byte) (Entry, error) {
	line = bytes.TrimSuffix(line, []byte{'\n'})
	stamp, rest, ok := bytes.Cut(line, []byte{' '})
	if !ok {
		return Entry{}, fmt.Errorf("%w: no stamp", ErrFormat)
	}
	at, err := time.Parse(time.RFC3339Nano, string(stamp))
	if err != nil {
		return Entry{}, fmt.Errorf("%w: stamp %q", ErrFormat, stamp)
	}
	stream, rest, ok := bytes.Cut(rest, []byte{' '})
	if !ok || Stream(stream) != Stdout && Stream(stream) != Stderr {
		return Entry{}, fmt.Errorf("%w: stream %q", ErrFormat, stream)
	}
	tags, content, ok := bytes.Cut(rest, []byte{' '})
	if !ok {
		return Entry{}, fmt.Errorf("%w: no tag", ErrFormat)
	}
	tag, _, _ := bytes.Cut(tags, []byte{':'})
	if string(tag) != "P" && string(tag) != "F" {
		return Entry{}, fmt.Errorf("%w: tag %q", ErrFormat, tags)
	}
	return Entry{Time: at, Stream: Stream(stream), Partial: tag[0] == 'P', Content: content}, nil
}
