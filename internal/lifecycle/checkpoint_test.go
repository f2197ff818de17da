package lifecycle_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

	"gantry/internal/checkpoint"
	"gantry/internal/engine/fake"
	"gantry/internal/lifecycle"
	"gantry/internal/pod"
)

// podOfTwo runs a pod with two containers.
func podOfTwo(t *testing.T, m *lifecycle.Manager) (podID string, ids []string) {
	t.Helper()
	podID = runPod(t, m, "web")
	return podID, []string{
		runContainer(t, m, podID, "one", "ignore", "TERM"), runContainer(t, m, podID, "two", "ignore", "TERM"),
	}
}

func namesIn(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestCheckpointOfAPodIsRestored(t *testing.T) {
	w := newWorld(t)
	m := w.start()
	id, ids := podOfTwo(t, m)
	dir := t.TempDir()
	if err := m.CheckpointPod(t.Context(), id, dir, ids); err != nil {
		t.Fatal(err)
	}
	if got := namesIn(t, dir); !slices.Equal(got, []string{"one.tar", "pod.options", "two.tar"}) {
		t.Errorf("the checkpoint is %v", got)
	}
	if paused := w.engine.Paused(); len(paused) > 0 {
		t.Errorf("paused afterwards: %v", paused)
	}
	want := []*pod.ContainerSpec{container("one"), container("two")}
	restored, err := m.RestorePod(t.Context(), dir, sandbox("copy"), want)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"one", "two"} {
		c := stateOf(t, m, restored.Containers[name])
		if c.State != pod.ContainerCreated || !c.Restored || c.Spec.Name != name || c.SandboxID != restored.ID {
			t.Errorf("container %s is %s, restored %t, named %s", name, c.State, c.Restored, c.Spec.Name)
		}
	}
	again, err := m.RestorePod(t.Context(), dir, sandbox("copy"), want)
	if err != nil || again.ID != restored.ID || again.Containers["two"] != restored.Containers["two"] {
		t.Errorf("a repeat gives %v, %v; want what the first gave", again, err)
	}
	if err := m.StartContainer(t.Context(), restored.Containers["one"]); err != nil {
		t.Fatal(err)
	}
	if c := stateOf(t, m, restored.Containers["one"]); c.State != pod.ContainerRunning {
		t.Errorf("the restored container is %s", c.State)
	}
	for _, p := range []string{id, restored.ID} {
		if err := m.RemovePod(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	w.mustBeEmpty("after removal")
}

func TestCheckpointOfAContainerIsAnImage(t *testing.T) {
	w := newWorld(t)
	m := w.start()
	podID, ids := podOfTwo(t, m)
	archive := filepath.Join(t.TempDir(), "one.tar")
	if err := m.CheckpointContainer(t.Context(), ids[0], archive); err != nil {
		t.Fatal(err)
	}
	if got := namesIn(t, filepath.Dir(archive)); !slices.Equal(got, []string{"one.tar"}) {
		t.Errorf("beside the archive are %v", got)
	}
	spec := container("copy")
	spec.ImageID = archive
	id, err := m.CreateContainer(t.Context(), podID, spec)
	if err != nil {
		t.Fatal(err)
	}
	if c := stateOf(t, m, id); !c.Restored || c.ImageRef != stateOf(t, m, ids[0]).ImageRef {
		t.Errorf("the copy is of image %s, restored %t; want that of the container that was checkpointed", c.ImageRef, c.Restored)
	}
}

// A fault in any of its steps leaves neither a paused container nor a file.
func TestCheckpointThatFailsLeavesNothing(t *testing.T) {
	for _, method := range []string{"CanCheckpoint", "Pause", "Checkpoint", "Resume"} {
		for rule, fault := range map[string]fake.Option{
			"fails": fake.FailOn(method), "loses its answer": fake.LoseAnswerOf(method), "hangs": fake.HangOn(method),
		} {
			t.Run(method+" "+rule, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t)
					m := w.start()
					podID, ids := podOfTwo(t, m)
					dir := t.TempDir()
					w.engine.Faults().Add(fault)
					ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
					defer cancel()
					if err := m.CheckpointPod(ctx, podID, dir, ids); err == nil {
						t.Fatal("it worked with a broken engine")
					}
					w.engine.Faults().Lift(method)
					<-time.After(10 * time.Minute) // of the bubble's clock: what is repeated behind the call
					if paused := w.engine.Paused(); len(paused) > 0 {
						t.Errorf("still paused: %v", paused)
					}
					if left := namesIn(t, dir); len(left) > 0 {
						t.Errorf("left behind: %v", left)
					}
					if err := m.CheckpointPod(t.Context(), podID, dir, ids); err != nil {
						t.Errorf("the next checkpoint: %v", err)
					}
				})
			})
		}
	}
}

func TestStopOfAPodBreaksACheckpointOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := w.start()
		podID, ids := podOfTwo(t, m)
		dir := t.TempDir()
		w.engine.Faults().Add(fake.HangOn("Checkpoint"))
		failed := make(chan error, 1)
		go func() { failed <- m.CheckpointPod(context.WithoutCancel(t.Context()), podID, dir, ids) }()
		synctest.Wait()
		if err := m.StopPod(t.Context(), podID); err != nil {
			t.Fatal(err)
		}
		if err := <-failed; !errdefs.IsFailedPrecondition(err) {
			t.Errorf("the checkpoint of a pod that is stopped: %v", err)
		}
		if left := namesIn(t, dir); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
}

func TestWhatCannotBeCheckpointed(t *testing.T) {
	w := newWorld(t)
	m := w.start()
	podID, ids := podOfTwo(t, m)
	other := runPod(t, m, "other")
	created := createContainer(t, m, podID, "created")
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for rule, c := range map[string]struct {
		pod   string
		dir   string
		ids   []string
		class func(error) bool
	}{
		"a pod that is not there":             {"nobody", t.TempDir(), ids, errdefs.IsNotFound},
		"a container that is not there":       {podID, t.TempDir(), []string{"nobody"}, errdefs.IsNotFound},
		"a container of another pod":          {other, t.TempDir(), ids, errdefs.IsInvalidArgument},
		"a container twice":                   {podID, t.TempDir(), []string{ids[0], ids[0]}, errdefs.IsInvalidArgument},
		"a container that does not run":       {podID, t.TempDir(), []string{ids[0], created}, errdefs.IsFailedPrecondition},
		"into a directory that has something": {podID, full, ids, errdefs.IsFailedPrecondition},
		"into a directory that is not there":  {podID, filepath.Join(full, "none"), ids, errdefs.IsInvalidArgument},
	} {
		t.Run(rule, func(t *testing.T) {
			before, _ := filepath.Glob(c.dir + "/*")
			if err := m.CheckpointPod(t.Context(), c.pod, c.dir, c.ids); !c.class(err) {
				t.Errorf("%v is of another class", err)
			}
			if after, _ := filepath.Glob(c.dir + "/*"); !slices.Equal(before, after) {
				t.Errorf("the directory has %v, had %v", after, before)
			}
		})
	}
}

func TestWhatCannotBeRestored(t *testing.T) {
	w := newWorld(t)
	m := w.start()
	podID, ids := podOfTwo(t, m)
	dir := t.TempDir()
	if err := m.CheckpointPod(t.Context(), podID, dir, ids); err != nil {
		t.Fatal(err)
	}
	both := []*pod.ContainerSpec{container("one"), container("two")}
	otherImage := []*pod.ContainerSpec{container("one"), container("two")}
	otherImage[1].ImageID = "localhost/none:1"
	broken := t.TempDir()
	if err := checkpoint.DescribePod(broken, &checkpoint.Pod{Archives: map[string]string{"one": "one.tar", "two": "two.tar"}}); err != nil {
		t.Fatal(err)
	}
	for rule, c := range map[string]struct {
		dir   string
		specs []*pod.ContainerSpec
		class func(error) bool
	}{
		"what is no checkpoint":                      {t.TempDir(), both, errdefs.IsInvalidArgument},
		"without its archives":                       {broken, both, errdefs.IsNotFound},
		"without one of its containers":              {dir, both[:1], errdefs.IsInvalidArgument},
		"with a container that it has not":           {dir, append(slices.Clone(both), container("three")), errdefs.IsInvalidArgument},
		"with a container twice":                     {dir, []*pod.ContainerSpec{both[0], both[0]}, errdefs.IsInvalidArgument},
		"with an image that is not here":             {dir, otherImage, errdefs.IsNotFound},
		"as a pod that is there, and is no such one": {dir, both, errdefs.IsAlreadyExists},
	} {
		t.Run(rule, func(t *testing.T) {
			spec := sandbox("copy")
			if rule == "as a pod that is there, and is no such one" {
				spec = sandbox("web")
			}
			if _, err := m.RestorePod(t.Context(), c.dir, spec, c.specs); !c.class(err) {
				t.Errorf("%v is of another class", err)
			}
			if n := len(m.Pods(t.Context())); n != 1 {
				t.Errorf("%d pods are left, want the one that was checkpointed", n)
			}
		})
	}
}

// The second container can't be created: the first and the pod go again before the call returns.
func TestRestoreThatFailsLeavesNothing(t *testing.T) {
	w := newWorld(t)
	m := w.start()
	podID, ids := podOfTwo(t, m)
	dir := t.TempDir()
	if err := m.CheckpointPod(t.Context(), podID, dir, ids); err != nil {
		t.Fatal(err)
	}
	if err := m.RemovePod(t.Context(), podID); err != nil {
		t.Fatal(err)
	}
	w.engine.Faults().Add(fake.LoseAnswerOf("CreateContainer"))
	specs := []*pod.ContainerSpec{container("one"), container("two")}
	if _, err := m.RestorePod(t.Context(), dir, sandbox("copy"), specs); !errors.Is(err, fake.ErrFault) {
		t.Errorf("RestorePod: %v; want the fault", err)
	}
	w.mustBeEmpty("by a restore that failed")
}

// An archive that was cut off, or one with a name that leads out, is refused before anything is made.
func TestArchiveThatIsNone(t *testing.T) {
	w := newWorld(t)
	m := w.start()
	podID := runPod(t, m, "web")
	path := filepath.Join(t.TempDir(), "a.tar")
	if err := os.WriteFile(path, []byte("no tar"), 0o600); err != nil {
		t.Fatal(err)
	}
	for archive, class := range map[string]func(error) bool{path: errdefs.IsInvalidArgument, path + ".absent": errdefs.IsNotFound} {
		spec := container("main")
		spec.ImageID = archive
		if _, err := m.CreateContainer(t.Context(), podID, spec); !class(err) {
			t.Errorf("%s: %v is of another class", archive, err)
		}
	}
}
