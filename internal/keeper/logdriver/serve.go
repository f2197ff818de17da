package logdriver

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
)

// Driver is what stands behind the protocol.
type Driver interface {
	// Start begins to log what comes from the FIFO at path file.
	Start(file string, options map[string]string) error
	// Stop returns when everything that was in the FIFO is in the log. No file is any, of a request
	// whose body was lost.
	Stop(file string) error
	// Read writes entries to send until there are no more, or ctx ends.
	Read(ctx context.Context, options map[string]string, r Range, send func(*Entry) error) error
}

// Range says which entries are wanted.
type Range struct {
	Since  time.Time // zero is from the first on
	Until  time.Time // zero is to the last
	Tail   int       // so many of the last; negative is all
	Follow bool      // and what comes, until the container has ended
}

// How much a request may bring, in bytes, and how long it may take. dockerd tells about the whole
// container, its environment included.
const (
	headLimit   = 64 << 10
	bodyLimit   = 16 << 20
	requestTime = 30 * time.Second
)

// errRequest is what is wrong with a request that this server can't read.
var errRequest = errors.New("bad request")

// Serve answers the one request of a connection and closes it. dockerd repeats what gets no answer, but
// with an empty body; a connection that were kept would be the more often without one.
func Serve(conn *os.File, d Driver) error {
	defer conn.Close()
	_ = conn.SetReadDeadline(time.Now().Add(requestTime))
	in := bufio.NewReader(conn)
	path, body, err := receive(in)
	if err != nil {
		answer(conn, "400 Bad Request", complaint(err))
		return err
	}
	_ = conn.SetReadDeadline(time.Time{})
	return dispatch(conn, path, body, d)
}

// request is what is used of the requests' bodies.
type request struct {
	File   string
	Info   struct{ Config map[string]string }
	Config Range
}

func dispatch(conn *os.File, path string, body []byte, d Driver) error {
	var req request
	if len(body) > 0 {
		if err := json.Unmarshal(body, &req); err != nil {
			answer(conn, "400 Bad Request", complaint(err))
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	var err error
	switch path {
	case "/Plugin.Activate":
		answer(conn, "200 OK", map[string]any{"Implements": []string{"LogDriver"}})
	case "/LogDriver.Capabilities":
		answer(conn, "200 OK", map[string]any{"Cap": map[string]bool{"ReadLogs": true}})
	case "/LogDriver.StartLogging":
		if err = d.Start(req.File, req.Info.Config); err != nil {
			err = fmt.Errorf("start logging %s: %w", req.File, err)
		}
		answer(conn, "200 OK", complaint(err))
	case "/LogDriver.StopLogging":
		if err = d.Stop(req.File); err != nil {
			err = fmt.Errorf("stop logging %s: %w", req.File, err)
		}
		answer(conn, "200 OK", complaint(err))
	case "/LogDriver.ReadLogs":
		return send(conn, &req, d)
	default:
		err = fmt.Errorf("%w: no method %q", errRequest, path)
		answer(conn, "404 Not Found", complaint(err))
	}
	return err
}

// send streams entries until there are no more or dockerd goes away.
func send(conn *os.File, req *request, d Driver) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, conn) // ends with the connection
		cancel()
	}()
	out := bufio.NewWriterSize(conn, 2*MaxFrame)
	_, _ = out.WriteString("HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nConnection: close\r\n\r\n")
	var frame []byte
	err := d.Read(ctx, req.Info.Config, req.Config, func(e *Entry) error {
		if e == nil {
			return out.Flush()
		}
		frame = Append(frame[:0], e)
		_, err := out.Write(frame)
		return err
	})
	if gone := out.Flush(); ctx.Err() != nil || gone != nil {
		return nil // the reader has left
	}
	if err != nil {
		return fmt.Errorf("read logs: %w", err)
	}
	return nil
}

func complaint(err error) any {
	text := ""
	if err != nil {
		text = err.Error()
	}
	return map[string]string{"Err": text}
}

func answer(conn *os.File, status string, body any) {
	data, err := json.Marshal(body)
	if err != nil { // never: strings and booleans
		data = nil
	}
	_, _ = fmt.Fprintf(conn, "HTTP/1.1 %s\r\nContent-Type: application/vnd.docker.plugins.v1.1+json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s",
		status, len(data), data)
}

// receive reads a request as Go's client makes it of a body in memory (RFC 9112): POST, headers, as many
// bytes as Content-Length says.
func receive(in *bufio.Reader) (path string, body []byte, err error) {
	room := headLimit
	first, err := line(in, &room)
	if err != nil {
		return "", nil, err
	}
	words := strings.Split(first, " ")
	if len(words) != 3 || words[0] != "POST" || !strings.HasPrefix(words[2], "HTTP/1.") {
		return "", nil, fmt.Errorf("%w: %.100q", errRequest, first)
	}
	length := 0
	for {
		header, err := line(in, &room)
		if err != nil {
			return "", nil, err
		}
		if header == "" {
			break
		}
		name, value, _ := strings.Cut(header, ":")
		value = strings.TrimSpace(value)
		switch strings.ToLower(name) {
		case "content-length":
			if length, err = strconv.Atoi(value); err != nil || length < 0 || length > bodyLimit {
				return "", nil, fmt.Errorf("%w: content length %.100q", errRequest, value)
			}
		case "transfer-encoding":
			return "", nil, fmt.Errorf("%w: transfer encoding %.100q", errRequest, value)
		}
	}
	body = make([]byte, length)
	if _, err := io.ReadFull(in, body); err != nil {
		return "", nil, fmt.Errorf("read request: %w", err)
	}
	return words[1], body, nil
}

// line reads one line of the head, of which room bytes may come.
func line(in *bufio.Reader, room *int) (string, error) {
	var all []byte
	for {
		part, err := in.ReadSlice('\n')
		*room -= len(part)
		if *room < 0 {
			return "", fmt.Errorf("%w: a head of more than %d bytes", errRequest, headLimit)
		}
		all = append(all, part...)
		if err == nil {
			return strings.TrimRight(string(all), "\r\n"), nil
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return "", fmt.Errorf("read request: %w", err)
		}
	}
}
