// Package migrate moves what another runtime has on this node to gantry.
package migrate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/client"

	"gantry/internal/admin"
)

// Docker is the slice of Docker's API that images are read with.
type Docker interface {
	ImageList(ctx context.Context, o client.ImageListOptions) (client.ImageListResult, error)
	ImageInspect(ctx context.Context, image string, o ...client.ImageInspectOption) (client.ImageInspectResult, error)
	ImageSave(ctx context.Context, images []string, o ...client.ImageSaveOption) (client.ImageSaveResult, error)
}

// Store is the slice of a server's image store that takes images.
type Store interface {
	ImportImages(ctx context.Context, r io.Reader) (ids []string, err error)
	// NameImage gives names to an image and returns it; without names it only looks. ErrNotFound says
	// that there is none.
	NameImage(ctx context.Context, ref string, names []string) (*admin.Named, error)
}

// Image is one image on its way.
type Image struct {
	Name string // the one to show
	N    int    // of All, from 1 on
	All  int
	Size int64 // bytes, as Docker has it
	Sent int64 // bytes so far

	Result Result // "" while it is on its way
	Err    error  // with Failed
}

// Result is what became of an image.
type Result string

// The results.
const (
	Copied  Result = "copied"
	There   Result = "there"   // it was there, with all its names
	Named   Result = "named"   // it was there, and got names that it lacked
	Skipped Result = "skipped" // it has no name that a pod could use
	Failed  Result = "failed"
)

// Images copies the images of Docker into the store, one after the other, with their names and digests;
// those that are there already are not copied again, so that what was broken off is gone on with by
// another call. Only is names of the ones that are wanted, none for all. Each image is told to report when
// it begins, while it is copied, and when it is done. One that fails does not keep the others; the error
// then says how many did.
func Images(ctx context.Context, from Docker, to Store, only []string, report func(Image)) error {
	all, err := chosen(ctx, from, only)
	if err != nil {
		return err
	}
	failed := 0
	for i, img := range all {
		img.state = Image{Name: img.shown(), N: i + 1, All: len(all), Size: img.state.Size}
		report(img.state)
		img.state.Result, img.state.Err = img.migrate(ctx, from, to, report)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if img.state.Err != nil {
			img.state.Result = Failed
			failed++
		}
		report(img.state)
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d images were not copied", failed, len(all))
	}
	return nil
}

// source is an image of Docker's.
type source struct {
	id            string // of its configuration or, in the containerd store, of its manifest or index
	tags, digests []string
	state         Image
}

func chosen(ctx context.Context, from Docker, only []string) ([]*source, error) {
	list, err := from.ImageList(ctx, client.ImageListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list docker's images: %w", err)
	}
	var all []*source
	for i := range list.Items {
		is := &list.Items[i]
		all = append(all, &source{id: is.ID, tags: names(is.RepoTags), digests: names(is.RepoDigests), state: Image{Size: is.Size}})
	}
	slices.SortFunc(all, func(a, b *source) int { return cmp.Compare(a.shown(), b.shown()) })
	if len(only) == 0 {
		return all, nil
	}
	var some []*source
	for _, want := range only {
		i := slices.IndexFunc(all, func(s *source) bool { return s.is(want) })
		if i < 0 {
			return nil, fmt.Errorf("docker has no image %q: %w", want, errdefs.ErrNotFound)
		}
		if !slices.Contains(some, all[i]) {
			some = append(some, all[i])
		}
	}
	return some, nil
}

// names are canonical: "busybox:1" is docker.io/library/busybox:1. What is none, as "<none>:<none>", is left out.
func names(familiar []string) []string {
	var all []string
	for _, name := range familiar {
		if named, err := reference.ParseNormalizedNamed(name); err == nil {
			all = append(all, reference.TagNameOnly(named).String())
		}
	}
	return all
}

func (s *source) is(name string) bool {
	if name == s.id || strings.HasPrefix(s.id, "sha256:"+name) {
		return true
	}
	all := names([]string{name})
	return len(all) == 1 && slices.Contains(s.names(), all[0])
}

func (s *source) names() []string { return slices.Concat(s.tags, s.digests) }

func (s *source) shown() string {
	if all := s.names(); len(all) > 0 {
		return all[0]
	}
	return s.id
}

func (s *source) migrate(ctx context.Context, from Docker, to Store, report func(Image)) (Result, error) {
	if len(s.names()) == 0 {
		return Skipped, nil
	}
	there, err := s.find(ctx, to)
	if err != nil {
		return "", err
	}
	if there != nil {
		if s.hasNames(there) {
			return There, nil
		}
		_, err := to.NameImage(ctx, there.ID, s.names())
		return Named, err
	}
	if err := s.copy(ctx, from, to, report); err != nil {
		return "", err
	}
	return Copied, nil
}

// find looks for the image in the store, nil if it is not there. A tag says nothing: it may name another
// by now.
func (s *source) find(ctx context.Context, to Store) (*admin.Named, error) {
	for _, ref := range append([]string{s.id}, s.digests...) {
		found, err := to.NameImage(ctx, ref, nil)
		if err == nil {
			return found, nil
		}
		if !errdefs.IsNotFound(err) {
			return nil, err
		}
	}
	return nil, nil
}

func (s *source) hasNames(n *admin.Named) bool {
	have := slices.Concat(n.Tags, n.Digests)
	return !slices.ContainsFunc(s.names(), func(name string) bool { return !slices.Contains(have, name) })
}

// copy streams the image, compares what came with what Docker has, and names it.
func (s *source) copy(ctx context.Context, from Docker, to Store, report func(Image)) error {
	is, err := from.ImageInspect(ctx, s.id)
	if err != nil {
		return fmt.Errorf("look at docker's image: %w", err)
	}
	saved := s.tags
	if len(saved) == 0 {
		saved = []string{s.id}
	}
	tar, err := from.ImageSave(ctx, saved)
	if err != nil {
		return fmt.Errorf("docker save: %w", err)
	}
	defer func() { _ = tar.Close() }()
	ids, err := to.ImportImages(ctx, &counter{tar, s, report})
	if err != nil {
		return fmt.Errorf("import: %w", err)
	}
	for _, id := range ids {
		got, err := to.NameImage(ctx, id, nil)
		if err != nil {
			return err
		}
		// The import has checked every layer against the configuration.
		if id == s.id || slices.Equal(got.Layers(), is.RootFS.Layers) {
			_, err := to.NameImage(ctx, id, s.names())
			return err
		}
	}
	return fmt.Errorf("what docker saved has not the layers that it says the image has: %w", errdefs.ErrDataLoss)
}

// counter reports what passes.
type counter struct {
	io.Reader
	s      *source
	report func(Image)
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.s.state.Sent += int64(n)
	c.report(c.s.state)
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("docker save: %w", err)
	}
	return n, err
}
