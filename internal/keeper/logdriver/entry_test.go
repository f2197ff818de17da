package logdriver_test

import (
	"bytes"
	"strings"
	"testing"

	"gantry/internal/crilog"
	"gantry/internal/keeper/logdriver"
)

const at = 1772600767000000080 // 2026-03-04T05:06:07.00000008Z

const stamp = "2026-03-04T05:06:07.00000008Z"

func frame(source crilog.Stream, line string, partial bool) string {
	return string(logdriver.Append(nil, &logdriver.Entry{Source: source, Time: at, Line: []byte(line), Partial: partial}))
}

// ofDocker is what dockerd's own encoder makes of the last piece of a line: partial, with metadata.
const ofDocker = "\x00\x00\x00\x24" + "\x0a\x06stdout" + "\x10\x01" + "\x1a\x02hi" + "\x20\x01" + "\x2a\x12" + "\x08\x01" + "\x12\x0cabcdefghijkl" + "\x18\x02"

// looksLonger looks like the beginning of a frame that goes on.
const looksLonger = "\x00\x00\x10\x00\x0a\x06stdout\xff"

func TestFormat(t *testing.T) {
	for name, tc := range map[string]struct{ raw, want string }{
		"a line is one entry tagged F":             {frame("stdout", "one", false), stamp + " stdout F one\n"},
		"sources keep their order":                 {frame("stderr", "e", false) + frame("stdout", "o", false), stamp + " stderr F e\n" + stamp + " stdout F o\n"},
		"a piece of a line keeps tag P":            {frame("stdout", "on", true), stamp + " stdout P on\n"},
		"an empty line is an entry":                {frame("stdout", "", false), stamp + " stdout F \n"},
		"the last piece ends the line":             {ofDocker, "1970-01-01T00:00:00.000000001Z stdout F hi\n"},
		"a newline in a line makes no entry":       {frame("stdout", "a\nb", false), stamp + " stdout F a b\n"},
		"nor does a frame that looks longer":       {looksLonger + frame("stdout", "one", false), stamp + " stdout F one\n"},
		"what is left of a lost frame is no entry": {"tail of a frame" + frame("stdout", "one", false), stamp + " stdout F one\n"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := string(logdriver.Format(nil, []byte(tc.raw))); got != tc.want {
				t.Errorf("got  %.200q\nwant %.200q", got, tc.want)
			}
		})
	}
}

func TestReady(t *testing.T) {
	one := frame("stdout", "one", false)
	for name, tc := range map[string]struct {
		raw  string
		room int
		want int
	}{
		"whole frames":                          {one + one + one[:9], 1 << 20, 2 * len(one)},
		"a half-read frame waits":               {one[:len(one)-1], 1 << 20, 0},
		"a half-read length waits":              {one[:3], 1 << 20, 0},
		"what does not fit into the room waits": {one + one, 60, len(one)},
		"a frame longer than dockerd's is none": {"\x00\x00\xff\xff" + one[4:] + one, 1 << 20, 2 * len(one)},
	} {
		t.Run(name, func(t *testing.T) {
			n := logdriver.Ready([]byte(tc.raw), tc.room)
			if n != tc.want {
				t.Errorf("Ready = %d, want %d", n, tc.want)
			}
			if got := len(logdriver.Format(nil, []byte(tc.raw[:n]))); got > tc.room {
				t.Errorf("%d bytes were promised to fit into %d", got, tc.room)
			}
		})
	}
}

func TestUnfinishedLines(t *testing.T) {
	out, err := logdriver.Of(crilog.Stdout), logdriver.Of(crilog.Stderr)
	for name, tc := range map[string]struct {
		before logdriver.Open
		raw    string
		want   logdriver.Open
	}{
		"a piece leaves its source's line open": {0, frame("stdout", "x", true), out},
		"a line's end closes its own alone":     {out | err, frame("stdout", "x", false), err},
		"nothing changes nothing":               {err, "", err},
	} {
		t.Run(name, func(t *testing.T) {
			if got := tc.before.After([]byte(tc.raw)); got != tc.want {
				t.Errorf("got %b, want %b", got, tc.want)
			}
		})
	}
}

// FuzzFormat checks that whatever comes through the FIFO makes whole log entries only, the same however
// it is cut.
func FuzzFormat(f *testing.F) {
	f.Add([]byte(frame("stdout", "one", false)+frame("stderr", strings.Repeat("x", 16384), true)), 20)
	f.Add([]byte("junk"+ofDocker), 3)
	f.Add([]byte(looksLonger+ofDocker+strings.Repeat("x", 4096)), 3)
	f.Fuzz(func(t *testing.T, raw []byte, cut int) {
		cut = logdriver.Ready(raw[:max(0, min(cut, len(raw)))], 1<<20)
		log := logdriver.Format(nil, raw[:cut])
		rest := raw[cut:]
		log = logdriver.Format(log, rest[:logdriver.Ready(rest, 1<<20)])
		for line := range bytes.Lines(log) {
			if _, err := crilog.Parse(line); err != nil {
				t.Fatalf("%v: %q", err, line)
			}
		}
		whole := logdriver.Format(nil, raw[:logdriver.Ready(raw, 1<<20)])
		if !bytes.Equal(whole, log) {
			t.Fatalf("whole: %q\nin two: %q", whole, log)
		}
	})
}
