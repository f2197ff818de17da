package image

import (
	"bytes"
	"io"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
)

// wide is a zstd frame that asks for a window of n bytes.
func wide(t *testing.T, n int, content []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	z, err := zstd.NewWriter(&out, zstd.WithWindowSize(n))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // a frame whose length is known before it begins needs no window
		if _, err := z.Write(content); err != nil {
			t.Fatal(err)
		}
		if err := z.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestWindowsThatAreTooWideAreRefused(t *testing.T) {
	content := bytes.Repeat([]byte("content "), 40_000)
	for name, c := range map[string]struct {
		blob []byte
		says string // "" if it is not refused
	}{
		"the largest":                      {wide(t, zstdWindow, content), ""},
		"larger than all":                  {wide(t, 2*zstdWindow, content), "a window of 64 MiB, more than the 32 MiB"},
		"usual after small":                {append(wide(t, 1<<20, content), wide(t, usualWindow, content)...), ""},
		"larger than the first and usual":  {append(wide(t, 1<<20, content), wide(t, 2*usualWindow, content)...), "more than the 8 MiB"},
		"a small frame after a large one":  {append(wide(t, 2*usualWindow, content), wide(t, 1<<20, content)...), ""},
		"a frame to skip before the first": {append([]byte{0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4}, wide(t, 1<<20, content)...), ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWindows()
			open := func(r io.Reader) (*reading, error) { return new(wanted).read(t.Context(), w, r) }
			n, err := stream(t.Context(), func() {}, bytes.NewReader(c.blob), open, func(r io.Reader) (int64, error) { return io.Copy(io.Discard, r) })
			if err == nil && n < int64(2*len(content)) {
				t.Errorf("%d bytes came out", n)
			}
			if c.says == "" && err != nil || c.says != "" && (!errdefs.IsResourceExhausted(err) || !strings.Contains(err.Error(), c.says)) {
				t.Errorf("error %v", err)
			}
			if !w.TryAcquire(zstdWindow) {
				t.Error("a window was not given back")
			}
		})
	}
}

func TestWideWindowsAreNotHeldAtOnce(t *testing.T) {
	for name, c := range map[string]struct {
		window int
		most   int
	}{
		"two of the largest go one after the other": {zstdWindow, 1},
		"two of half go side by side":               {zstdWindow / 2, 2},
	} {
		t.Run(name, func(t *testing.T) {
			blob := wide(t, c.window, bytes.Repeat([]byte("content "), 40_000))
			w := newWindows()
			var mu sync.Mutex
			now, most := 0, 0
			both := make(chan struct{}) // closed when both consume at once
			var wg sync.WaitGroup
			for range 2 {
				wg.Go(func() {
					open := func(r io.Reader) (*reading, error) { return new(wanted).read(t.Context(), w, r) }
					_, err := stream(t.Context(), func() {}, bytes.NewReader(blob), open, func(r io.Reader) (int64, error) {
						mu.Lock()
						now++
						if most = max(most, now); most == 2 {
							close(both)
						}
						mu.Unlock()
						if c.most == 2 {
							<-both
						}
						defer func() {
							mu.Lock()
							defer mu.Unlock()
							now--
						}()
						return io.Copy(io.Discard, r)
					})
					if err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if most != c.most {
				t.Errorf("%d at once, want %d", most, c.most)
			}
			if !w.TryAcquire(zstdWindow) {
				t.Error("a window was not given back")
			}
		})
	}
}
