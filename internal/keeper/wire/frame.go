// Package wire is how the keeper's client, worker and holder speak: JSON frames with a length and
// a version over unix stream sockets, and descriptors beside them. It imports the standard library
// and x/sys only, and not package net, which would double the keeper's size.
package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
)

// Version of the protocol. A frame of another version is refused.
const Version = 1

const (
	headSize = 8
	// MaxBody bounds a frame's JSON, in bytes. The largest is a list of containers.
	MaxBody = 16 << 20
	// MaxFiles bounds the descriptors of one frame; the kernel allows 253.
	MaxFiles = 64
)

// ErrFrame is wrapped for bytes that are no frame of this version.
var ErrFrame = errors.New("bad keeper frame")

// Frame is one message. A request has an id and an Op; its answer has the same id.
type Frame struct {
	ID    uint64          `json:"id,omitempty"`
	Op    string          `json:"op,omitempty"`
	Code  string          `json:"code,omitempty"` // class of the error, "" when there is none
	Error string          `json:"error,omitempty"`
	Body  json.RawMessage `json:"body,omitempty"`
}

// Append appends f to dst as it travels: "GK", version, number of descriptors, length (big endian), JSON.
func Append(dst []byte, f *Frame, files int) ([]byte, error) {
	body, err := json.Marshal(f)
	if err != nil {
		return nil, fmt.Errorf("encode frame: %w", err)
	}
	if len(body) > MaxBody || files > MaxFiles {
		return nil, fmt.Errorf("%w: %d bytes, %d descriptors", ErrFrame, len(body), files)
	}
	dst = append(dst, 'G', 'K', Version, byte(files))
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(body)))
	return append(dst, body...), nil
}

// Decode takes the first frame of data. used is 0 when data is the beginning of a frame only.
func Decode(data []byte) (f *Frame, files, used int, err error) {
	if len(data) < headSize {
		return nil, 0, 0, nil
	}
	if data[0] != 'G' || data[1] != 'K' {
		return nil, 0, 0, fmt.Errorf("%w: starts with %q", ErrFrame, data[:2])
	}
	if data[2] != Version {
		return nil, 0, 0, fmt.Errorf("%w: version %d, this side speaks %d", ErrFrame, data[2], Version)
	}
	n := int(binary.BigEndian.Uint32(data[4:]))
	if n > MaxBody || data[3] > MaxFiles {
		return nil, 0, 0, fmt.Errorf("%w: %d bytes, %d descriptors", ErrFrame, n, data[3])
	}
	if len(data) < headSize+n {
		return nil, 0, 0, nil
	}
	f = new(Frame)
	if err := json.Unmarshal(data[headSize:headSize+n], f); err != nil {
		return nil, 0, 0, fmt.Errorf("%w: %w", ErrFrame, err)
	}
	return f, int(data[3]), headSize + n, nil
}
