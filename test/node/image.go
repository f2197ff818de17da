package node

import (
	"sync"
	"testing"

	"gantry/internal/labimage"
)

// registry serves images to all tests of a binary; it ends with the process.
var registry = sync.OnceValues(func() (*labimage.Server, error) { return labimage.Serve(labimage.Config{}) })

// busybox pushes the image that most tests use.
var busybox = sync.OnceValues(func() (string, error) {
	s, err := registry()
	if err != nil {
		return "", err
	}
	img, err := labimage.Busybox()
	if err != nil {
		return "", err
	}
	return s.Push("lab/busybox:1", img)
})

// Busybox returns the reference of an image with a shell and its applets, on a registry that runs.
func Busybox(t testing.TB) string {
	t.Helper()
	ref, err := busybox()
	if err != nil {
		t.Fatalf("push busybox: %v", err)
	}
	return ref
}
