package lifecycle_test

import (
	"fmt"
	"path/filepath"
	"testing"

	"gantry/internal/engine"
	"gantry/internal/engine/fake"
	"gantry/internal/lifecycle"
	"gantry/internal/pod"
	"gantry/internal/store"
)

// BenchmarkPod is what the pod logic itself costs a pod of one container, journal and files included,
// among a hundred others.
func BenchmarkPod(b *testing.B) {
	dir := b.TempDir()
	journal, err := store.Open(filepath.Join(dir, "journal"), "boot")
	if err != nil {
		b.Fatal(err)
	}
	images := fake.NewImages(image)
	if _, err = images.Pull(b.Context(), &pod.Pull{Ref: image}); err != nil {
		b.Fatal(err)
	}
	m, err := lifecycle.New(lifecycle.Options{
		Engines:  map[string]engine.Engine{"fake": fake.New()},
		Images:   map[string]engine.Images{"fake": images},
		Handlers: map[string]string{"": "fake"},
		Network:  newNetwork(), Journal: journal, StateDir: filepath.Join(dir, "state"),
	})
	if err == nil {
		err = m.Recover(b.Context())
	}
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = m.Close(b.Context()) }()
	pods := func(name string) string {
		id, err := m.RunPod(b.Context(), sandbox(name))
		if err != nil {
			b.Fatal(err)
		}
		return id
	}
	for i := range 100 {
		pods(fmt.Sprint("other-", i))
	}
	for b.Loop() {
		id := pods("web")
		cid, err := m.CreateContainer(b.Context(), id, container("main", "sleep"))
		if err == nil {
			err = m.StartContainer(b.Context(), cid)
		}
		if err == nil {
			err = m.RemovePod(b.Context(), id)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}
