package worker

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLogOfADeadKeeperEndsWithAWholeEntry(t *testing.T) {
	whole := "2026-11-22T02:39:31Z stdout F one\n" + "2026-11-22T02:39:31Z stdout P " + strings.Repeat("x", 9000) + "\n"
	for name, c := range map[string]struct{ had, want string }{
		"nothing was written":               {"", ""},
		"whole entries stay":                {whole, whole},
		"the beginning of an entry goes":    {whole + "2026-11-22T02:39:32", whole},
		"a long beginning goes":             {whole + "2026-11-22T02:39:32Z stdout F " + strings.Repeat("y", 9000), whole},
		"a first entry that was torn goes":  {"2026-11-22T02:39:32", ""},
		"an entry that lacks its end alone": {whole + strings.TrimSuffix(whole, "\n"), whole + "2026-11-22T02:39:31Z stdout F one\n"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "0.log")
			if err := os.WriteFile(path, []byte(c.had), 0o640); err != nil {
				t.Fatal(err)
			}
			fd, made, err := openLost(path)
			if err != nil || made {
				t.Fatalf("made %v, %v", made, err)
			}
			defer func() { _ = unix.Close(fd) }()
			if _, err := unix.Write(fd, []byte("next\n")); err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(path); err != nil || string(got) != c.want+"next\n" {
				t.Errorf("%d bytes, %v: …%.60q, want %d", len(got), err, got[max(0, len(got)-60):], len(c.want)+5)
			}
		})
	}
}
