package cli_test

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf8"

	"github.com/google/uuid"

	"gantry/cmd/gantry/internal/cli"
	"gantry/internal/admin"
)

func TestBar(t *testing.T) {
	digest := "sha256:" + strings.Repeat("a", 64)
	tests := map[string]struct {
		layer admin.Layer
		want  string
	}{
		"begun":           {admin.Layer{Digest: digest, Total: 30_000_000}, "aaaaaaaaaaaaa  [>         ]  0B/30MB"},
		"half":            {admin.Layer{Digest: digest, Done: 15_000_000, Total: 30_000_000}, "aaaaaaaaaaaaa  [=====>    ]  15MB/30MB"},
		"done":            {admin.Layer{Digest: digest, Done: 30_000_000, Total: 30_000_000}, "aaaaaaaaaaaaa  [==========]  30MB/30MB"},
		"more than whole": {admin.Layer{Digest: digest, Done: 31_000_000, Total: 30_000_000}, "aaaaaaaaaaaaa  [==========]  30MB/30MB"},
		"size unknown":    {admin.Layer{Digest: digest, Done: 2500}, "aaaaaaaaaaaaa  2.5kB"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := cli.Bar(tt.layer, 40); got != tt.want {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
		})
	}
	for width := 50; width < 200; width++ {
		line := cli.Bar(admin.Layer{Digest: digest, Done: 999_900_000, Total: 999_900_000}, width)
		if n := utf8.RuneCountInString(line); n >= width {
			t.Errorf("a terminal of %d characters gets a line of %d", width, n)
		}
	}
}

func TestBarsAreDrawnOverEachOther(t *testing.T) {
	var out bytes.Buffer
	b := cli.NewBars(&out, 80)
	two := []admin.Layer{{Digest: "sha256:a", Done: 1}, {Digest: "sha256:b"}}
	cli.Draw(b, nil)
	cli.Draw(b, two[:1])
	cli.Draw(b, two)
	cli.Draw(b, nil) // the pull is over: what is there stays
	want := "\r\x1b[Ka  1B\n" + "\x1b[1A" + "\r\x1b[Ka  1B\n\r\x1b[Kb  0B\n"
	if out.String() != want {
		t.Errorf("got  %q\nwant %q", out.String(), want)
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[uint64]string{0: "0B", 999: "999B", 1000: "1kB", 1_234_567: "1.23MB", 5_000_000_000_000: "5TB", 7_000_000_000_000_000: "7e+03TB"} {
		if got := cli.Size(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}

func TestDetachKeys(t *testing.T) {
	tests := map[string]struct {
		typed, passed string
		left          bool
	}{
		"nothing special":             {"ls\r", "ls\r", false},
		"both keys":                   {"ls\r\x10\x11more", "ls\r", true},
		"the first key alone passes":  {"a\x10b", "a\x10b", false},
		"the first key twice":         {"\x10\x10\x11", "", true},
		"the second key alone passes": {"a\x11b", "a\x11b", false},
	}
	for name, tt := range tests {
		for how, slow := range map[string]func(io.Reader) io.Reader{
			"at once": func(r io.Reader) io.Reader { return r }, "key by key": iotest.OneByteReader,
		} {
			t.Run(name+" "+how, func(t *testing.T) {
				left := false
				got, err := io.ReadAll(cli.NewDetacher(slow(strings.NewReader(tt.typed)), func() { left = true }))
				if err != nil {
					t.Fatal(err)
				}
				// What was typed in the same read before the keys may be lost with them: the user leaves.
				if left != tt.left || !tt.left && string(got) != tt.passed {
					t.Errorf("left %v, passed %q", left, got)
				}
			})
		}
	}
}

func TestPorts(t *testing.T) {
	for s, ok := range map[string]bool{
		"80": true, "8080:80": true, ":80": true, "0:80": true, "": false, "x": false, "80:0": false, "80:x": false, "70000": false, "x:80": false, "1:2:3": false,
	} {
		if err := cli.CheckPorts(s); (err == nil) != ok {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func TestOnlyOurDirectoriesAreRemoved(t *testing.T) {
	base := t.TempDir()
	mine := filepath.Join(base, uuid.NewString())
	unmarked := filepath.Join(base, uuid.NewString())
	named := filepath.Join(base, "etc")
	for _, dir := range []string{mine, unmarked, named} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{mine, named} {
		if err := os.WriteFile(filepath.Join(dir, cli.Marker), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{mine, unmarked, named, "", "/", ".", base} {
		if err := cli.RemoveDirsOf(dir); err != nil {
			t.Errorf("%q: %v", dir, err)
		}
	}
	for dir, kept := range map[string]bool{mine: false, unmarked: true, named: true, base: true} {
		if _, err := os.Stat(dir); (err == nil) != kept {
			t.Errorf("%s: kept is %v", dir, err == nil)
		}
	}
}

func TestScreen(t *testing.T) {
	for _, c := range []struct {
		rule, text    string
		width, height int
		want          string
	}{
		{"every line is cleared behind its end, and the rest below", "ab\nc\n", 10, 10, "\x1b[Hab\x1b[K\r\nc\x1b[K\r\n\x1b[J"},
		{"a long line is cut", "abcdef\n", 3, 10, "\x1b[Habc\x1b[K\r\n\x1b[J"},
		{"the last line stays free", "a\nb\nc\n", 10, 3, "\x1b[Ha\x1b[K\r\nb\x1b[K\r\n\x1b[J"},
	} {
		t.Run(c.rule, func(t *testing.T) {
			if got := cli.Screen(c.text, c.width, c.height); got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}
