package dockerlog

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"gantry/internal/crilog"
)

// stampLayout is how the API writes stamps: of one length, so that messages can be told apart.
const stampLayout = "2006-01-02T15:04:05.000000000Z07:00"

const stampSize = len("2006-01-02T15:04:05.000000000Z")

// errMessage is wrapped for what is no message of the API's.
var errMessage = errors.New("not a message of docker's log API")

// maxMessage bounds a message, in bytes. Those of 20.10 are never longer than a piece of a line.
const maxMessage = 1 << 20

// framed reads a message of a container without a terminal: the stream's number, three zeros, the length,
// then stamp, space, line (package stdcopy of Docker's API).
func framed(in *bufio.Reader) (message, error) {
	var head [8]byte
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return message{}, err
	}
	size := binary.BigEndian.Uint32(head[4:])
	m := message{stream: crilog.Stdout}
	switch {
	case head[0] == 2:
		m.stream = crilog.Stderr
	case head[0] != 1:
		return message{}, fmt.Errorf("%w: stream %d", errMessage, head[0])
	}
	if size > maxMessage {
		return message{}, fmt.Errorf("%w: %d bytes", errMessage, size)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(in, body); err != nil {
		return message{}, err
	}
	stamp, line, ok := bytes.Cut(body, []byte{' '})
	if !ok {
		return message{}, fmt.Errorf("%w: no stamp in %.50q", errMessage, body)
	}
	return m, m.set(stamp, line)
}

// raw reads a message of a container with a terminal, which has no frame: a line, or a piece of
// crilog.MaxPiece bytes with another message right behind it.
func raw(in *bufio.Reader) (message, error) {
	stamp := make([]byte, stampSize+1)
	if _, err := io.ReadFull(in, stamp); err != nil {
		return message{}, err
	}
	m := message{stream: crilog.Stdout}
	var line []byte
	for len(line) < crilog.MaxPiece {
		c, err := in.ReadByte()
		if err != nil {
			if errors.Is(err, io.EOF) && len(line) > 0 {
				break // the last line has no end
			}
			return message{}, err
		}
		if line = append(line, c); c == '\n' {
			break
		}
	}
	if next, err := in.Peek(1); len(line) == crilog.MaxPiece && err == nil && next[0] == '\n' {
		_, _ = in.ReadByte()
		line = append(line, '\n')
	}
	return m, m.set(stamp[:stampSize], line)
}

func (m *message) set(stamp, line []byte) error {
	at, err := time.Parse(stampLayout, string(stamp))
	if err != nil {
		return fmt.Errorf("%w: stamp %.50q", errMessage, stamp)
	}
	m.stamp, m.line = at, line
	if n := len(line); n > 0 && line[n-1] == '\n' {
		m.line, m.whole = line[:n-1], true
	}
	return nil
}

// resume cuts off what a writer that was killed left of an entry, and tells how far the log has come.
func resume(file *os.File) (position, error) {
	size, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return position{}, fmt.Errorf("read log: %w", err)
	}
	for window := int64(64 << 10); ; window *= 2 {
		from := max(0, size-window)
		data := make([]byte, size-from)
		if _, err := file.ReadAt(data, from); err != nil {
			return position{}, fmt.Errorf("read log: %w", err)
		}
		end := bytes.LastIndexByte(data, '\n') + 1
		if end == 0 && from > 0 {
			continue
		}
		if end < len(data) {
			if err := file.Truncate(from + int64(end)); err != nil {
				return position{}, fmt.Errorf("cut off a torn entry: %w", err)
			}
			size = from + int64(end)
		}
		if at, ok := last(data[:end]); ok || from == 0 {
			return at, nil
		}
	}
}

// last is the position behind whole entries; ok says that they reach back to another stamp.
func last(data []byte) (at position, ok bool) {
	for len(data) > 0 {
		start := bytes.LastIndexByte(data[:len(data)-1], '\n') + 1
		e, err := crilog.Parse(data[start:])
		if err != nil {
			return at, false // the window begins in the middle of an entry
		}
		if at.Count > 0 && !e.Time.Equal(at.Stamp) {
			return at, true
		}
		at.Stamp = e.Time
		at.Count++
		data = data[:start]
	}
	return at, false
}
