package fsck

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"gantry/internal/pod"
)

// records are what the disk says there should be.
type records struct {
	keys   map[string]bool // of pods and containers
	layers map[string]bool // names of image layers' directories
	logs   map[string]bool // directories of pods' logs
	uids   map[string]bool // of pods
}

// names says whether a key is one of a pod or container.
func (r *records) names(key string) bool { return key != "" && r.keys[key] }

// readRecords reads the journal and what images and containers say they have. A server that was never
// there has no journal: an error, because everything would be an orphan.
func readRecords(root string) (*records, error) {
	r := &records{keys: map[string]bool{}, layers: map[string]bool{}, logs: map[string]bool{}, uids: map[string]bool{}}
	journal := filepath.Join(root, "journal")
	if _, err := os.Stat(journal); err != nil {
		return nil, fmt.Errorf("no server keeps its journal in %s: %w", journal, err)
	}
	for _, kind := range []string{"pods", "containers"} {
		list, err := entries(filepath.Join(journal, kind))
		if err != nil {
			return nil, err
		}
		for _, e := range list {
			if key, ok := strings.CutSuffix(e.Name(), ".json"); ok {
				r.keys[key] = true
				r.pod(filepath.Join(journal, kind, e.Name()))
			}
		}
	}
	if err := r.images(filepath.Join(root, "images")); err != nil {
		return nil, err
	}
	return r, nil
}

// pod learns a pod's logs. A record that cannot be read keeps its key, which is its name.
func (r *records) pod(path string) {
	data, err := os.ReadFile(path)
	if err != nil {
		return
	}
	var record struct {
		Pod *pod.Sandbox `json:"pod"`
	}
	if json.Unmarshal(data, &record) == nil && record.Pod != nil {
		r.uids[record.Pod.Spec.Metadata.UID] = true
		r.logs[filepath.Clean(record.Pod.Spec.LogDirectory)] = true
	}
}

// images learns which layers images and containers have.
func (r *records) images(dir string) error {
	for _, pattern := range []string{"images/*.json", "containers/*/info.json"} {
		files, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return err
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			var has struct {
				Layers []struct {
					Name string `json:"name"`
				} `json:"layers"`
			}
			if err := json.Unmarshal(data, &has); err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
			for _, l := range has.Layers {
				r.layers[l.Name] = true
			}
		}
	}
	return nil
}

// lockStore takes the image store's lock: a server that has it removes unused layers itself, and has
// some in the making that no record names yet.
func lockStore(root string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(root, "images", "lock"), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("the server that runs looks after its layers itself: %w", errdefs.ErrFailedPrecondition), f.Close())
	}
	return func() { _ = f.Close() }, nil
}
