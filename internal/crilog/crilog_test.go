package crilog_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"gantry/internal/crilog"
)

var at = time.Date(2026, 3, 4, 5, 6, 7, 80, time.FixedZone("", 3600))

const stamp = "2026-03-04T04:06:07.00000008Z"

func TestFormat(t *testing.T) {
	long := strings.Repeat("x", crilog.MaxPiece)
	for name, tc := range map[string]struct{ raw, want string }{
		"a line is one entry tagged F":          {"one\n", stamp + " stdout F one\n"},
		"lines keep their order":                {"one\ntwo\n", stamp + " stdout F one\n" + stamp + " stdout F two\n"},
		"an empty line is an entry":             {"\n", stamp + " stdout F \n"},
		"an unfinished line keeps tag P":        {"one\ntw", stamp + " stdout F one\n" + stamp + " stdout P tw\n"},
		"a line of 16 KiB is one entry":         {long + "\n", stamp + " stdout F " + long + "\n"},
		"a longer line is cut":                  {long + "yy\n", stamp + " stdout P " + long + "\n" + stamp + " stdout F yy\n"},
		"bytes that are no text pass unchanged": {"\x00\xff\r\n", stamp + " stdout F \x00\xff\r\n"},
		"nothing makes no entry":                {"", ""},
	} {
		t.Run(name, func(t *testing.T) {
			if got := string(crilog.Format(nil, at, crilog.Stdout, []byte(tc.raw))); got != tc.want {
				t.Errorf("got  %.200q\nwant %.200q", got, tc.want)
			}
		})
	}
}

func TestReady(t *testing.T) {
	long := strings.Repeat("x", crilog.MaxPiece)
	for name, tc := range map[string]struct {
		raw  string
		room int
		want int
	}{
		"whole lines":                             {"one\ntwo\nthr", 1 << 20, 8},
		"an unfinished line waits":                {"thr", 1 << 20, 0},
		"16 KiB without a newline wait":           {long, 1 << 20, 0},
		"one byte more makes a piece":             {long + "x", 1 << 20, crilog.MaxPiece},
		"a newline after 16 KiB belongs to it":    {long + "\n", 1 << 20, crilog.MaxPiece + 1},
		"what does not fit into the buffer waits": {"one\ntwo\n", 60, 4},
	} {
		t.Run(name, func(t *testing.T) {
			n := crilog.Ready([]byte(tc.raw), tc.room)
			if n != tc.want {
				t.Errorf("Ready = %d, want %d", n, tc.want)
			}
			if got := len(crilog.Format(nil, at, crilog.Stderr, []byte(tc.raw[:n]))); got > tc.room {
				t.Errorf("%d bytes were promised to fit into %d", got, tc.room)
			}
		})
	}
}

func TestParse(t *testing.T) {
	for name, tc := range map[string]struct {
		line    string
		content string
		partial bool
		ok      bool
	}{
		"a full entry":              {stamp + " stderr F hello world\n", "hello world", false, true},
		"a partial entry":           {stamp + " stdout P he", "he", true, true},
		"further tags are ignored":  {stamp + " stdout P:x:y he", "he", true, true},
		"an empty content":          {stamp + " stdout F \n", "", false, true},
		"a stamp with an offset":    {"2026-03-04T05:06:07.1+01:00 stdout F x", "x", false, true},
		"no stamp":                  {"hello", "", false, false},
		"a stamp that is none":      {"yesterday stdout F x", "", false, false},
		"a stream that is none":     {stamp + " stdin F x", "", false, false},
		"a tag that is none":        {stamp + " stdout X x", "", false, false},
		"a line that ends too soon": {stamp + " stdout F", "", false, false},
	} {
		t.Run(name, func(t *testing.T) {
			e, err := crilog.Parse([]byte(tc.line))
			if !tc.ok {
				if !errors.Is(err, crilog.ErrFormat) {
					t.Fatalf("Parse(%q) = %v, want ErrFormat", tc.line, err)
				}
				return
			}
			if err != nil || string(e.Content) != tc.content || e.Partial != tc.partial {
				t.Errorf("Parse(%q) = %+v, %v", tc.line, e, err)
			}
		})
	}
}

// FuzzRoundTrip checks that the output of a stream, cut anywhere, comes out of its log unchanged.
func FuzzRoundTrip(f *testing.F) {
	f.Add([]byte("one\ntwo\nthree"), 5)
	f.Add([]byte(strings.Repeat("x", 40000)+"\n\n"), 16385)
	f.Fuzz(func(t *testing.T, raw []byte, cut int) {
		cut = max(0, min(cut, len(raw)))
		cut = crilog.Ready(raw[:cut], 1<<20)
		log := crilog.Format(nil, at, crilog.Stdout, raw[:cut])
		log = crilog.Format(log, at, crilog.Stdout, raw[cut:])
		var back []byte
		for line := range bytes.Lines(log) {
			e, err := crilog.Parse(line)
			if err != nil {
				t.Fatal(err)
			}
			if len(e.Content) > crilog.MaxPiece {
				t.Fatalf("a piece of %d bytes", len(e.Content))
			}
			if back = append(back, e.Content...); !e.Partial {
				back = append(back, '\n')
			}
		}
		if !bytes.Equal(back, raw) {
			t.Fatalf("%q came back as %q", raw, back)
		}
	})
}

func BenchmarkLinesOf100Bytes(b *testing.B) {
	raw := bytes.Repeat([]byte(strings.Repeat("x", 99)+"\n"), 327)
	dst := make([]byte, 0, 64<<10)
	at := time.Unix(1, 123456789)
	b.SetBytes(int64(len(raw)))
	for b.Loop() {
		n := crilog.Ready(raw, cap(dst))
		dst = crilog.Format(dst[:0], at, crilog.Stdout, raw[:n])
	}
}
