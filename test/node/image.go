package node

import (
	"fmt"
	"os"
	"path/filepath"
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

// MirrorDockerHub makes docker.io/library/busybox:1.36, which the examples use, come from the
// registry of the tests.
func (n *Node) MirrorDockerHub() {
	n.t.Helper()
	s, err := registry()
	if err != nil {
		n.t.Fatalf("registry: %v", err)
	}
	img, err := labimage.Busybox()
	if err != nil {
		n.t.Fatalf("make busybox: %v", err)
	}
	if _, err = s.Push("library/busybox:1.36", img); err != nil {
		n.t.Fatalf("push busybox: %v", err)
	}
	dir := filepath.Join(n.Root, "certs.d", "docker.io")
	if err = os.MkdirAll(dir, 0o755); err != nil {
		n.t.Fatal(err)
	}
	hosts := fmt.Sprintf("server = \"http://%[1]s\"\n[host.\"http://%[1]s\"]\ncapabilities = [\"pull\", \"resolve\"]\n", s.Host)
	if err = os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(hosts), 0o600); err != nil {
		n.t.Fatal(err)
	}
}
