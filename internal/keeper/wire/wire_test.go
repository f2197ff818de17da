package wire_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"gantry/internal/keeper/wire"
)

func frame(t testing.TB, f *wire.Frame, files int) []byte {
	t.Helper()
	data, err := wire.Append(nil, f, files)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestDecode(t *testing.T) {
	good := frame(t, &wire.Frame{ID: 7, Op: "list", Body: json.RawMessage(`{"a":1}`)}, 2)
	with := func(i int, b byte) []byte {
		data := bytes.Clone(good)
		data[i] = b
		return data
	}
	for name, tc := range map[string]struct {
		data []byte
		used int
		ok   bool
	}{
		"a frame":                        {good, len(good), true},
		"a frame and the next's start":   {append(bytes.Clone(good), "GK"...), len(good), true},
		"the beginning of a frame waits": {good[:len(good)-1], 0, true},
		"the beginning of a head waits":  {good[:3], 0, true},
		"nothing waits":                  {nil, 0, true},
		"other bytes are refused":        {[]byte("GET / HTTP/1.1\r\n"), 0, false},
		"another version is refused":     {with(2, wire.Version+1), 0, false},
		"too many descriptors":           {with(3, wire.MaxFiles+1), 0, false},
		"a length that is too great":     {with(4, 0xff), 0, false},
		"a body that is no JSON object":  {with(8, 'x'), 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			f, files, used, err := wire.Decode(tc.data)
			if (err == nil) != tc.ok || used != tc.used || err != nil && !errors.Is(err, wire.ErrFrame) {
				t.Fatalf("used %d, %v; want %d, ok %v", used, err, tc.used, tc.ok)
			}
			if used > 0 && (f.ID != 7 || f.Op != "list" || files != 2) {
				t.Errorf("frame %+v with %d descriptors", f, files)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(frame(f, &wire.Frame{ID: 1, Op: "ping"}, 0))
	f.Add(frame(f, &wire.Frame{Code: "unknown", Error: "x", Body: json.RawMessage("null")}, 3)[:20])
	f.Fuzz(func(t *testing.T, data []byte) {
		fr, files, used, err := wire.Decode(data)
		if err != nil || used == 0 {
			return
		}
		if used > len(data) || files > wire.MaxFiles {
			t.Fatalf("used %d of %d bytes, %d descriptors", used, len(data), files)
		}
		again, n, _, err := wire.Decode(frame(t, fr, files))
		if err != nil || n != files || again.ID != fr.ID || again.Op != fr.Op || again.Code != fr.Code || again.Error != fr.Error {
			t.Fatalf("%+v came back as %+v, %v", fr, again, err)
		}
	})
}

func pair(t *testing.T) (a, b *wire.Conn) {
	t.Helper()
	x, y, err := wire.Pair()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		fd int
		to **wire.Conn
	}{{x, &a}, {y, &b}} {
		if *c.to, err = wire.NewConn(c.fd); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = a.Close(); _ = b.Close() })
	return a, b
}

func TestDescriptorsStayWithTheirFrame(t *testing.T) {
	a, b := pair(t)
	dir := t.TempDir()
	open := func(name string) int {
		fd, err := unix.Open(filepath.Join(dir, name), unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	one, two := open("one"), open("two")
	defer wire.CloseAll([]int{one, two})
	for _, send := range []struct {
		op  string
		fds []int
	}{{"a", []int{one}}, {"b", nil}, {"c", []int{two, one}}} {
		if err := a.Send(&wire.Frame{Op: send.op}, send.fds...); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []struct {
		op    string
		files string
	}{{"a", "one"}, {"b", ""}, {"c", "two one"}} {
		f, fds, err := b.Receive()
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, fd := range fds {
			path, err := os.Readlink("/proc/self/fd/" + itoa(fd))
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, filepath.Base(path))
		}
		wire.CloseAll(fds)
		if got := strings.Join(names, " "); f.Op != want.op || got != want.files {
			t.Errorf("frame %q with files %q, want %q with %q", f.Op, got, want.op, want.files)
		}
	}
	_ = a.Close()
	if _, _, err := b.Receive(); !errors.Is(err, io.EOF) {
		t.Errorf("receive after the end: %v", err)
	}
}

func itoa(n int) string {
	data, _ := json.Marshal(n)
	return string(data)
}

func TestLargeFrame(t *testing.T) {
	a, b := pair(t)
	body, _ := json.Marshal(strings.Repeat("x", 3<<20))
	go func() { _ = a.Send(&wire.Frame{Op: "large", Body: body}) }()
	f, _, err := b.Receive()
	if err != nil || !bytes.Equal(f.Body, body) {
		t.Errorf("%d bytes came of %d: %v", len(f.Body), len(body), err)
	}
	if err := a.Send(&wire.Frame{Body: json.RawMessage(`"` + strings.Repeat("x", wire.MaxBody) + `"`)}); !errors.Is(err, wire.ErrFrame) {
		t.Errorf("send of too much: %v", err)
	}
}

func TestSocketWithALongPath(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 150))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s.sock")
	for range 2 { // the second replaces a stale one
		fd, err := wire.Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		l := os.NewFile(uintptr(fd), "listener")
		c, err := wire.Dial(path)
		if err != nil {
			t.Fatal(err)
		}
		s, err := wire.Accept(l)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Send(&wire.Frame{Op: "ping"}); err != nil {
			t.Error(err)
		}
		if f, _, err := s.Receive(); err != nil || f.Op != "ping" {
			t.Errorf("%+v, %v", f, err)
		}
		_, _, _ = c.Close(), s.Close(), l.Close()
	}
}

func TestErrorsKeepTheirClass(t *testing.T) {
	f, err := wire.Reply(3, nil, wire.Errorf(wire.CodeNotFound, "container %s", "c"))
	if err != nil || f.ID != 3 {
		t.Fatal(f, err)
	}
	got, _, _, err := wire.Decode(frame(t, f, 0))
	if err != nil {
		t.Fatal(err)
	}
	var e *wire.Error
	if !errors.As(got.Err(), &e) || e.Code != wire.CodeNotFound || e.Text != "container c" {
		t.Errorf("error %v", got.Err())
	}
}
