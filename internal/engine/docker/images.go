package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/client"

	"gantry/internal/engine"
	"gantry/internal/pod"
)

// Images is Docker's own store. What is built or loaded with Docker's tools is in it at once.
type Images struct {
	engine *Engine
	pulls  pulls
	usage  usage
}

var (
	_ engine.Images      = (*Images)(nil)
	_ engine.ImagePorter = (*Images)(nil)
)

// Images returns the engine's image store.
func (e *Engine) Images() *Images {
	return &Images{engine: e, pulls: pulls{running: make(map[string]*pull)}}
}

// isID matches ids and their prefixes, which are no names though they look like some.
var isID = regexp.MustCompile(`^(sha256:)?[0-9a-f]{4,64}$`)

// canonical is how Docker is asked for what a client wrote: a digest beside a tag wins, as the CRI has it.
func canonical(ref string) (string, error) {
	if strings.HasPrefix(ref, "sha256:") || isID.MatchString(ref) {
		return ref, nil
	}
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return "", fmt.Errorf("image %q: %w: %w", ref, errdefs.ErrInvalidArgument, err)
	}
	return named.String(), nil
}

// Get finds an image by id, prefix of an id, tag or digest.
func (s *Images) Get(ctx context.Context, ref string) (*pod.Image, error) {
	name, err := canonical(ref)
	if err != nil {
		return nil, err
	}
	known, generation := s.engine.images.get(name)
	if known != nil {
		return known, nil
	}
	d := s.engine.daemon
	r, err := call(ctx, d, func(ctx context.Context) (client.ImageInspectResult, error) { return d.api.ImageInspect(ctx, name) })
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", ref, err)
	}
	img := s.imageOf(&r.InspectResponse)
	s.engine.images.put(name, img, generation)
	return img, nil
}

func (s *Images) imageOf(r *image.InspectResponse) *pod.Image {
	img := &pod.Image{
		ID: r.ID, Tags: fullNames(r.RepoTags), Digests: fullNames(r.RepoDigests), Size: uint64(max(r.Size, 0)),
		Pulled: r.Metadata.LastTagTime,
	}
	if c := r.Config; c != nil {
		img.User, img.Labels = c.User, c.Labels
		img.Config = pod.ImageConfig{
			Entrypoint: c.Entrypoint, Cmd: c.Cmd, Env: c.Env, WorkingDir: c.WorkingDir, StopSignal: c.StopSignal, Volumes: c.Volumes,
		}
		img.Config.Raw, _ = json.Marshal(r) // what Docker says of it, for the verbose status
	}
	img.Pinned = s.pinned(img)
	return img
}

// pinned says whether the kubelet's garbage collection must spare an image: pods cannot start without it.
func (s *Images) pinned(img *pod.Image) bool {
	return slices.ContainsFunc(fullNames([]string{builtinPause, s.engine.opts.PauseImage}), func(ref string) bool {
		return slices.Contains(img.Tags, ref) || slices.Contains(img.Digests, ref)
	})
}

// fullNames makes "busybox:latest" into "docker.io/library/busybox:latest", and leaves out what is none.
func fullNames(familiar []string) []string {
	var all []string
	for _, name := range familiar {
		if named, err := reference.ParseNormalizedNamed(name); err == nil {
			all = append(all, reference.TagNameOnly(named).String())
		}
	}
	return all
}

// List returns every image, as Docker's own list has it: without configurations.
func (s *Images) List(ctx context.Context) ([]*pod.Image, error) {
	d := s.engine.daemon
	r, err := call(ctx, d, func(ctx context.Context) (client.ImageListResult, error) {
		return d.api.ImageList(ctx, client.ImageListOptions{})
	})
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	all := make([]*pod.Image, 0, len(r.Items))
	for i := range r.Items {
		is := &r.Items[i]
		img := &pod.Image{
			ID: is.ID, Tags: fullNames(is.RepoTags), Digests: fullNames(is.RepoDigests), Size: uint64(max(is.Size, 0)),
			Labels: is.Labels, Pulled: time.Unix(is.Created, 0),
		}
		img.Pinned = s.pinned(img)
		all = append(all, img)
	}
	return all, nil
}

// Remove removes an image with all its names. One that a container uses stays, which is
// errdefs.ErrFailedPrecondition.
func (s *Images) Remove(ctx context.Context, ref string) error {
	img, err := s.Get(ctx, ref)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer s.engine.images.changed()
	for _, name := range slices.Concat(img.Tags, img.Digests, []string{img.ID}) {
		if err := s.removeName(ctx, name); err != nil {
			// To 20.10 it is an error of its own when somebody else removes the image at the same time.
			if _, gone := s.Get(ctx, img.ID); errdefs.IsNotFound(gone) {
				return nil
			}
			return fmt.Errorf("remove image %s: %w", ref, err)
		}
	}
	return nil
}

// removeName removes one name, or what is left under an id. The last name takes the image with it.
func (s *Images) removeName(ctx context.Context, name string) error {
	d := s.engine.daemon
	_, err := call(ctx, d, func(ctx context.Context) (client.ImageRemoveResult, error) {
		return d.api.ImageRemove(ctx, name, client.ImageRemoveOptions{PruneChildren: true})
	})
	switch {
	case errdefs.IsNotFound(err):
		return nil
	case errdefs.IsConflict(err):
		return fmt.Errorf("%w: %s", errdefs.ErrFailedPrecondition, oneLine(err))
	}
	return err
}

// Export writes an image as `docker save` does, with its names.
func (s *Images) Export(ctx context.Context, id string, w io.Writer) error {
	img, err := s.Get(ctx, id)
	if err != nil {
		return err
	}
	names := img.Tags
	if len(names) == 0 {
		names = []string{img.ID}
	}
	d := s.engine.daemon
	_, err = call(ctx, d, func(ctx context.Context) (n int64, err error) {
		r, err := d.api.ImageSave(ctx, names)
		if err != nil {
			return 0, err
		}
		defer func() { _ = r.Close() }()
		return io.Copy(w, r)
	})
	if err != nil {
		return fmt.Errorf("export image %s: %w", id, err)
	}
	return nil
}

// Import loads what Export or another store wrote, and returns the ids of what was in it.
func (s *Images) Import(ctx context.Context, r io.Reader) ([]string, error) {
	d := s.engine.daemon
	names, err := call(ctx, d, func(ctx context.Context) ([]string, error) {
		loaded, err := d.api.ImageLoad(ctx, r)
		if err != nil {
			return nil, err
		}
		defer func() { _ = loaded.Close() }()
		return loadedNames(loaded)
	})
	s.engine.images.changed()
	if err != nil {
		return nil, fmt.Errorf("import images: %w", err)
	}
	var ids []string
	for _, name := range names {
		img, err := s.Get(ctx, name)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(ids, img.ID) {
			ids = append(ids, img.ID)
		}
	}
	if len(ids) == 0 {
		return nil, fmt.Errorf("import images: docker found none in it: %w", errdefs.ErrInvalidArgument)
	}
	return ids, nil
}

// loadedNames reads what /images/load says: "Loaded image: NAME" and "Loaded image ID: ID" lines.
func loadedNames(r io.Reader) ([]string, error) {
	var names []string
	for dec := json.NewDecoder(r); ; {
		var m jsonstream.Message
		err := dec.Decode(&m)
		if errors.Is(err, io.EOF) {
			return names, nil
		}
		if err != nil {
			return nil, err
		}
		if m.Error != nil {
			return nil, m.Error
		}
		for line := range strings.Lines(m.Stream) {
			for _, head := range []string{"Loaded image: ", "Loaded image ID: "} {
				if name, ok := strings.CutPrefix(strings.TrimSpace(line), head); ok {
					names = append(names, name)
				}
			}
		}
	}
}
