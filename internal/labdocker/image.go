package labdocker

import (
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"gantry/internal/labimage"
)

// Busybox gives the engine the image with a shell that most tests use, without a registry, and returns
// its name.
func (d *Daemon) Busybox() string {
	d.t.Helper()
	img, err := labimage.Busybox()
	if err != nil {
		d.t.Fatal(err)
	}
	return d.Load("lab/busybox:1", img)
}

// Load gives the engine img as the name ref, which it returns.
func (d *Daemon) Load(ref string, img v1.Image) string {
	d.t.Helper()
	tag, err := name.NewTag(ref)
	if err != nil {
		d.t.Fatal(err)
	}
	cmd := d.DockerCommand(d.t.Context(), "load")
	in, err := cmd.StdinPipe()
	if err != nil {
		d.t.Fatal(err)
	}
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		d.t.Fatalf("docker load: %v", err)
	}
	written := tarball.Write(tag, img, in)
	_ = in.Close()
	if err := cmd.Wait(); err != nil || written != nil {
		d.t.Fatalf("docker load: %v, %v\n%s", err, written, said.String())
	}
	return ref
}
