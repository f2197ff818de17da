package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/errdefs"

	"gantry/internal/pod"
)

// Version is the format that this version writes. A reader takes every version up to its own.
const Version = 1

// maxRecord bounds what is read into memory for one record: requests are at most 16 MiB.
const maxRecord = 32 << 20

// record is the content of a file: a version, the boot it was written in and one noun.
type record struct {
	Version   int            `json:"version"`
	Boot      string         `json:"boot"`
	Pod       *pod.Sandbox   `json:"pod,omitempty"`
	Container *pod.Container `json:"container,omitempty"`
}

func (r *record) key() pod.Key {
	if r.Pod != nil {
		return r.Pod.Spec.Key
	}
	return r.Container.Spec.Key
}

// what names the record for hooks.
func (r *record) what() string {
	if r.Pod != nil {
		return "pod " + string(r.Pod.State)
	}
	return "container " + string(r.Container.State)
}

func read(path string) (*record, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxRecord {
		return nil, fmt.Errorf("no record of at most %d bytes: %w", maxRecord, errdefs.ErrDataLoss)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return decode(data)
}

// decode reads one record, which must name exactly one noun in a state that exists.
func decode(data []byte) (*record, error) {
	var head struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return nil, fmt.Errorf("decode record: %w: %w", err, errdefs.ErrDataLoss)
	}
	if head.Version < 1 || head.Version > Version {
		return nil, fmt.Errorf("record has format %d and this version reads up to %d: %w", head.Version, Version, errdefs.ErrNotImplemented)
	}
	var r record
	d := json.NewDecoder(bytes.NewReader(data))
	if err := d.Decode(&r); err != nil {
		return nil, fmt.Errorf("decode record: %w: %w", err, errdefs.ErrDataLoss)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("bytes after the record: %w", errdefs.ErrDataLoss)
	}
	if (r.Pod == nil) == (r.Container == nil) || r.key() == "" || !r.knownState() {
		return nil, fmt.Errorf("record is not one pod or container in a known state: %w", errdefs.ErrDataLoss)
	}
	return &r, nil
}

func (r *record) knownState() bool {
	if r.Pod != nil {
		switch r.Pod.State {
		case pod.SandboxCreating, pod.SandboxReady, pod.SandboxNotReady, pod.SandboxRemoving:
			return true
		}
		return false
	}
	switch r.Container.State {
	case pod.ContainerCreating, pod.ContainerCreated, pod.ContainerRunning, pod.ContainerExited, pod.ContainerRemoving:
		return true
	}
	return false
}
