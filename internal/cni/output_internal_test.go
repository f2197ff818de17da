package cni

import (
	"bytes"
	"testing"
)

// The machine stands still when a plugin has ended, for longer than its output is waited for: what it wrote is there all
// the same.
func TestOutputThatIsReadLate(t *testing.T) {
	wrote := bytes.Repeat([]byte("0123456789abcdef"), 4<<10-1) // less than a pipe holds
	for _, left := range []string{"nobody", "somebody"} {
		t.Run(left+" holds the pipe", func(t *testing.T) {
			for range 100 {
				o, w, err := newOutput()
				if err != nil {
					t.Fatal(err)
				}
				if _, err = w.Write(wrote); err != nil {
					t.Fatal(err)
				}
				if left == "nobody" {
					_ = w.Close()
				}
				got, held := o.end(0)
				if !bytes.Equal(got, wrote) || held != (left == "somebody") {
					t.Fatalf("%d bytes of %d, held %t", len(got), len(wrote), held)
				}
				_ = w.Close()
			}
		})
	}
}
