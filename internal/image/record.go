package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"gantry/internal/atomicfile"
	"gantry/internal/pod"
)

// record is an image as the disk remembers it: one file a image, written when all its layers are on
// the disk. A record is never changed in memory either, but replaced.
type record struct {
	ID       string        `json:"id"`      // digest of Config; of Manifest in an artifact, whose config says nothing
	Tags     []string      `json:"tags"`    // canonical
	Digests  []string      `json:"digests"` // name@digest of the manifest or index that was asked for
	Layers   []layerRecord `json:"layers"`  // the lowest first
	Config   []byte        `json:"config"`
	Manifest []byte        `json:"manifest,omitempty"`
	// Artifact is the type of an artifact; "" says that this is an image, which containers can run.
	Artifact string `json:"artifact,omitempty"`
	// Annotations are the manifest's.
	Annotations map[string]string `json:"annotations,omitempty"`
	Pulled      time.Time         `json:"pulled"`

	decoded *ocispec.Image // Config; of an artifact nothing
}

// decode makes r ready for use.
func (r *record) decode() error {
	r.decoded = new(ocispec.Image)
	if r.Artifact != "" {
		return nil
	}
	if err := json.Unmarshal(r.Config, r.decoded); err != nil {
		return fmt.Errorf("config of image %s: %w", r.ID, err)
	}
	return nil
}

// layerRecord names a layer's directory and what it holds.
type layerRecord struct {
	Name string `json:"name"` // of the directory below layers
	origin
	// AsFile says that an artifact's blob is the layer's one file.
	AsFile bool  `json:"asFile,omitempty"`
	Bytes  int64 `json:"bytes"`
	// Root says that the layer describes the root directory.
	Root bool `json:"root,omitempty"`
	// Implicit are directories that the layer has but does not describe.
	Implicit []string `json:"implicit,omitempty"`
}

// self is what ID is the digest of.
func (r *record) self() []byte {
	if r.Artifact != "" {
		return r.Manifest
	}
	return r.Config
}

func (r *record) image(pinned func(string) bool) *pod.Image {
	config := r.decoded
	img := &pod.Image{
		ID:          r.ID,
		Artifact:    r.Artifact,
		Tags:        slices.Clone(r.Tags),
		Digests:     slices.Clone(r.Digests),
		User:        config.Config.User,
		Labels:      config.Config.Labels,
		Annotations: r.Annotations,
		Pulled:      r.Pulled,
		Pinned:      slices.ContainsFunc(r.Tags, pinned) || slices.ContainsFunc(r.Digests, pinned),
		Config: pod.ImageConfig{
			Entrypoint: config.Config.Entrypoint,
			Cmd:        config.Config.Cmd,
			Env:        config.Config.Env,
			WorkingDir: config.Config.WorkingDir,
			StopSignal: config.Config.StopSignal,
			Volumes:    config.Config.Volumes,
			Raw:        r.Config,
		},
	}
	for _, l := range r.Layers {
		img.Size += uint64(l.Bytes)
	}
	img.Size += uint64(len(r.Config))
	return img
}

// named returns r with name among its tags or digests.
func (r *record) named(name string) *record {
	n := *r
	if strings.Contains(name, "@") {
		n.Digests = with(r.Digests, name)
	} else {
		n.Tags = with(r.Tags, name)
	}
	return &n
}

// without returns r without name among its tags and digests.
func (r *record) without(name string) *record {
	n := *r
	n.Tags, n.Digests = drop(r.Tags, name), drop(r.Digests, name)
	return &n
}

func drop(names []string, name string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(n string) bool { return n == name })
}

func with(names []string, name string) []string {
	if slices.Contains(names, name) {
		return names
	}
	n := append(slices.Clone(names), name)
	slices.Sort(n)
	return n
}

func (s *Store) recordPath(id string) string {
	return filepath.Join(s.dir(imagesDir), strings.TrimPrefix(id, "sha256:")+".json")
}

// writeRecord puts r on the disk.
func (s *Store) writeRecord(r *record) error {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("record of image %s: %w", r.ID, err)
	}
	write := atomicfile.WriteSync
	if s.opts.NoSync {
		write = atomicfile.Write
	}
	if err := write(s.recordPath(r.ID), data, 0o600); err != nil {
		return fmt.Errorf("record of image %s: %w", r.ID, err)
	}
	s.opts.Hook("image/record written")
	return nil
}

// removeRecord takes the image from the disk's memory before its layers may go.
func (s *Store) removeRecord(id string) error {
	if err := os.Remove(s.recordPath(id)); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("remove record of image %s: %w", id, err)
	}
	if s.opts.NoSync {
		return nil
	}
	return atomicfile.SyncDir(s.dir(imagesDir))
}

// readRecords loads what is whole and removes the rest: what a crash left half written, and images of
// which a layer is missing.
func (s *Store) readRecords() error {
	entries, err := os.ReadDir(s.dir(imagesDir))
	if err != nil {
		return fmt.Errorf("read image records: %w", err)
	}
	var all []*record
	for _, e := range entries {
		path := filepath.Join(s.dir(imagesDir), e.Name())
		r, err := s.readRecord(path)
		if err != nil && !errdefs.IsDataLoss(err) {
			return fmt.Errorf("read image record %s: %w", path, err)
		}
		if err != nil {
			s.log.Warn("image record is not usable and is removed", slog.String("path", path), slog.Any("error", err))
			if err := os.Remove(path); err != nil {
				return fmt.Errorf("remove unusable image record: %w", err)
			}
			continue
		}
		all = append(all, r)
	}
	// a crash between the record that gained a tag and the one that loses it leaves the tag in both
	slices.SortFunc(all, func(a, b *record) int { return b.Pulled.Compare(a.Pulled) })
	for _, r := range all {
		for _, tag := range r.Tags {
			if s.index.byName[tag] != "" {
				r = r.without(tag)
			}
		}
		s.index.put(r)
	}
	return nil
}

// readRecord reads one record. ErrDataLoss says that it is of no use; a disk that cannot be read says
// nothing about it.
func (s *Store) readRecord(path string) (*record, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var r record
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrDataLoss)
	}
	if got := digest.FromBytes(r.self()).String(); got != r.ID || s.recordPath(r.ID) != path {
		return nil, fmt.Errorf("it is named %q, calls itself %q and holds %q: %w", filepath.Base(path), r.ID, got, errdefs.ErrDataLoss)
	}
	for _, l := range r.Layers {
		if err := checkName(l.Name); err != nil {
			return nil, fmt.Errorf("%w: %w", err, errdefs.ErrDataLoss)
		}
		_, err := os.Lstat(s.layerPath(l.Name))
		if errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("layer %s is missing: %w", l.Name, errdefs.ErrDataLoss)
		}
		if err != nil {
			return nil, err
		}
	}
	if err := r.decode(); err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrDataLoss)
	}
	return &r, nil
}
