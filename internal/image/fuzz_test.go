package image_test

import (
	"strings"
	"testing"

	"gantry/internal/image"
)

func FuzzNormalize(f *testing.F) {
	for _, seed := range []string{
		"busybox", "busybox:1.36", "127.0.0.1:5000/a/b:c", "[::1]:5000/a", "a@sha256:" + strings.Repeat("ab", 32),
		"a:b@sha256:" + strings.Repeat("ab", 32), strings.Repeat("a", 300), "a b", "A", "", "sha256:", strings.Repeat("0", 64),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, ref string) {
		named, err := image.Normalize(ref)
		if err != nil {
			return
		}
		again, err := image.Normalize(named.String())
		if err != nil || again.String() != named.String() {
			t.Errorf("%q is %q, which is %v, %v", ref, named, again, err)
		}
	})
}
