package faults_test

import (
	"os"
	"path/filepath"
	"slices"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// checkpointCalls are played by a runtime that has no CRIU behind it; pausing is real.
func checkpointCalls() []*call {
	return []*call{
		{name: "CheckpointContainer", prepare: running, do: (*world).checkpointContainer, done: (*world).checkpointed, usable: true},
		{name: "CheckpointPod", prepare: running, do: (*world).checkpointPod, done: (*world).checkpointed, usable: true},
		{name: "CreateContainer of a checkpoint", prepare: withArchive, do: (*world).create, usable: true},
		{name: "StartContainer of a checkpoint", prepare: withRestorable, do: (*world).start, usable: true, restores: true},
		{name: "RestorePod", prepare: withPodCheckpoint, do: (*world).restorePod, usable: true, restores: true},
	}
}

// place is a new directory for one attempt of a checkpoint.
func (w *world) place() string {
	w.t.Helper()
	dir, err := os.MkdirTemp(w.checkpoints(), "")
	if err != nil {
		w.t.Fatal(err)
	}
	return dir
}

// checkpoints is the directory of the case's checkpoints; none of it is the server's to keep.
func (w *world) checkpoints() string {
	dir := filepath.Join(w.n.Root, "checkpoints-of-clients")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		w.t.Fatal(err)
	}
	return dir
}

func (w *world) checkpointContainer() error {
	_, err := w.n.Runtime.CheckpointContainer(w.n.Context(), &runtimeapi.CheckpointContainerRequest{
		ContainerId: w.container, Location: filepath.Join(w.place(), "main.tar"),
	})
	return err
}

func (w *world) checkpointPod() error {
	_, err := w.n.Runtime.CheckpointPod(w.n.Context(), &runtimeapi.CheckpointPodRequest{
		PodSandboxId: w.pod, OutputPath: w.place(), ContainerIds: []string{w.container},
	})
	return err
}

// checkpointed wants every attempt to be whole or to have left nothing, and one to be whole.
func (w *world) checkpointed() {
	w.t.Helper()
	places, err := os.ReadDir(w.checkpoints())
	if err != nil {
		w.t.Fatal(err)
	}
	whole := false
	for _, p := range places {
		files, err := os.ReadDir(filepath.Join(w.checkpoints(), p.Name()))
		if err != nil {
			w.t.Fatal(err)
		}
		var names []string
		for _, f := range files {
			names = append(names, f.Name())
		}
		if slices.Equal(names, []string{"main.tar"}) || slices.Equal(names, []string{"main.tar", "pod.options"}) {
			whole = true
		} else if len(names) > 0 {
			w.t.Errorf("left behind in a place of a checkpoint: %v", names)
		}
	}
	if !whole {
		w.t.Error("no attempt gave a whole checkpoint")
	}
	w.forgetCheckpoints()
}

func (w *world) forgetCheckpoints() {
	w.t.Helper()
	if err := os.RemoveAll(w.checkpoints()); err != nil {
		w.t.Fatal(err)
	}
}

// forgetLog removes the log of the container that was checkpointed, as the kubelet does.
func (w *world) forgetLog() {
	w.t.Helper()
	if err := os.RemoveAll(w.sandbox.LogDirectory); err != nil {
		w.t.Fatal(err)
	}
}

// withArchive is a pod whose container was checkpointed and removed.
func withArchive(w *world) {
	running(w)
	if err := w.checkpointContainer(); err != nil {
		w.t.Fatal(err)
	}
	archives, err := filepath.Glob(filepath.Join(w.checkpoints(), "*", "main.tar"))
	if err != nil || len(archives) != 1 {
		w.t.Fatalf("archives are %v, %v", archives, err)
	}
	if err := w.remove(); err != nil {
		w.t.Fatal(err)
	}
	w.container = ""
	w.forgetLog()
	w.config.Image.Image = archives[0]
}

func withRestorable(w *world) {
	withArchive(w)
	w.container = w.n.Create(w.pod, w.config, w.sandbox)
}

func withPodCheckpoint(w *world) {
	running(w)
	if err := w.checkpointPod(); err != nil {
		w.t.Fatal(err)
	}
	w.n.RemovePod(w.pod)
	w.pod, w.container = "", ""
	w.forgetLog()
}

func (w *world) restorePod() error {
	places, err := filepath.Glob(filepath.Join(w.checkpoints(), "*"))
	if err != nil || len(places) != 1 {
		w.t.Fatalf("checkpoints are %v, %v", places, err)
	}
	r, err := w.n.Runtime.RestorePod(w.n.Context(), &runtimeapi.RestorePodRequest{
		CheckpointPath: places[0], Config: w.sandbox, ContainerConfigs: []*runtimeapi.ContainerConfig{w.config},
	})
	if err != nil {
		return err
	}
	w.pod, w.container = r.PodSandboxId, r.RestoredContainers[0].ContainerId
	return nil
}
