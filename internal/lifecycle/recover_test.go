package lifecycle_test

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

	"gantry/internal/engine"
	"gantry/internal/engine/fake"
	"gantry/internal/lifecycle"
	"gantry/internal/pod"
)

func TestRecoverContainers(t *testing.T) {
	for rule, c := range map[string]struct {
		meanwhile func(*world, pod.Key)
		state     pod.ContainerState
		code      int32
		reason    string
	}{
		"what runs goes on": {
			meanwhile: func(*world, pod.Key) {}, state: pod.ContainerRunning,
		},
		"what ended meanwhile has its exit code": {
			meanwhile: func(w *world, k pod.Key) { w.engine.Exit(k, 7) },
			state:     pod.ContainerExited, code: 7, reason: pod.ReasonError,
		},
		"what the engine does not know is Unknown": {
			meanwhile: func(w *world, k pod.Key) { _ = w.engine.RemoveContainer(w.t.Context(), k) },
			state:     pod.ContainerExited, code: 255, reason: pod.ReasonUnknown,
		},
		"after a new boot nothing runs": {
			meanwhile: func(w *world, _ pod.Key) { w.boot = "boot-2"; w.engine.Vanish() },
			state:     pod.ContainerExited, code: 255, reason: pod.ReasonUnknown,
		},
		"after a new boot a pid that is another's is not believed": {
			meanwhile: func(w *world, _ pod.Key) { w.boot = "boot-2" },
			state:     pod.ContainerExited, code: 255, reason: pod.ReasonUnknown,
		},
	} {
		t.Run(rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				m := w.start()
				id := runContainer(t, m, runPod(t, m, "web"), "main", "sleep")
				before := stateOf(t, m, id)
				w.stop(m)
				c.meanwhile(w, before.Spec.Key)
				m = w.start()
				is := stateOf(t, m, id)
				if is.State != c.state || is.ExitCode != c.code || is.Reason != c.reason {
					t.Errorf("%s, %d, %s; want %s, %d, %s", is.State, is.ExitCode, is.Reason, c.state, c.code, c.reason)
				}
				if !is.StartedAt.Equal(before.StartedAt) || is.State == pod.ContainerExited && is.FinishedAt.Before(is.StartedAt) {
					t.Errorf("started %v, was %v, finished %v", is.StartedAt, before.StartedAt, is.FinishedAt)
				}
				if is.State == pod.ContainerRunning {
					if r, err := m.ExecSync(t.Context(), id, []string{"exit", "4"}, 0); err != nil || r.ExitCode != 4 {
						t.Errorf("exec afterwards: %+v, %v", r, err)
					}
					w.engine.Exit(before.Spec.Key, 5)
					synctest.Wait()
					if is := stateOf(t, m, id); is.ExitCode != 5 {
						t.Errorf("an exit afterwards is not seen: %+v", is)
					}
				}
				for _, sb := range m.Pods(t.Context()) {
					if err := m.RemovePod(t.Context(), sb.ID); err != nil {
						t.Fatal(err)
					}
				}
				w.mustBeEmpty("after recovery and removal")
			})
		})
	}
}

func TestStartThatNobodyRecorded(t *testing.T) {
	for rule, c := range map[string]struct {
		meanwhile func(*fake.Engine, pod.Key)
		state     pod.ContainerState
	}{
		"it runs":          {func(*fake.Engine, pod.Key) {}, pod.ContainerRunning},
		"it ran and ended": {func(e *fake.Engine, k pod.Key) { e.Exit(k, 7) }, pod.ContainerExited},
	} {
		t.Run(rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				m := w.start(func(o *lifecycle.Options) {
					o.Hook = func(p lifecycle.Point) error {
						if p == (lifecycle.Point{Op: lifecycle.OpStartContainer, Step: "started"}) {
							runtime.Goexit()
						}
						return nil
					}
				})
				id := createContainer(t, m, runPod(t, m, "web"), "main", "sleep")
				if err := m.StartContainer(t.Context(), id); err == nil {
					t.Fatal("the crash was not noticed")
				}
				key := keyOf(t, m, id)
				w.stop(m)
				c.meanwhile(w.engine, key)
				is := stateOf(t, w.start(), id)
				if is.State != c.state || is.StartedAt.IsZero() || is.State == pod.ContainerExited && is.ExitCode != 7 {
					t.Errorf("%s, started %v, code %d; want %s", is.State, is.StartedAt, is.ExitCode, c.state)
				}
			})
		})
	}
}

func TestRecoverPods(t *testing.T) {
	for rule, c := range map[string]struct {
		meanwhile func(*world, pod.Key)
		want      string
	}{
		"a ready pod goes on": {func(*world, pod.Key) {}, "ready"},
		"a pod whose sandbox is gone is not ready": {func(w *world, k pod.Key) {
			_ = w.engine.RemoveSandbox(w.t.Context(), k)
		}, "notready"},
		"a pod whose namespaces are gone is not ready": {func(w *world, k pod.Key) {
			_ = w.engine.StopSandbox(w.t.Context(), k)
		}, "notready"},
		"a pod of an earlier boot is not ready": {func(w *world, _ pod.Key) {
			w.boot = "boot-2"
			w.engine.Vanish()
		}, "notready"},
		"also when its namespaces seem to be there": {func(w *world, _ pod.Key) { w.boot = "boot-2" }, "notready"},
	} {
		t.Run(rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				m := w.start()
				id := runPod(t, m, "web")
				sb, err := m.Pod(t.Context(), id)
				if err != nil {
					t.Fatal(err)
				}
				w.stop(m)
				c.meanwhile(w, sb.Spec.Key)
				m = w.start()
				if got := podState(m, id); got != c.want {
					t.Errorf("the pod is %s; want %s", got, c.want)
				}
				w.net.mu.Lock()
				attached := len(w.net.attached)
				w.net.mu.Unlock()
				if attached != map[string]int{"ready": 1, "notready": 0}[c.want] {
					t.Errorf("%d networks are attached to a pod that is %s", attached, c.want)
				}
				if err := m.RemovePod(t.Context(), id); err != nil {
					t.Fatal(err)
				}
				w.mustBeEmpty("after recovery and removal")
			})
		})
	}
}

func TestWhatNoRecordNamesIsCollected(t *testing.T) {
	for rule, spoil := range map[string]func(path string) error{
		"records are missing":   os.Remove,
		"records are empty":     func(p string) error { return os.Truncate(p, 0) },
		"records are truncated": func(p string) error { return os.Truncate(p, 40) },
		"records are garbage":   func(p string) error { return os.WriteFile(p, []byte("\x7fELF"), 0o600) },
		"records are of the future": func(p string) error {
			return os.WriteFile(p, []byte(`{"version":1000}`), 0o600)
		},
	} {
		for _, kinds := range [][]string{{"pods"}, {"containers"}, {"pods", "containers"}} {
			t.Run(rule, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t)
					m := w.start()
					runContainer(t, m, runPod(t, m, "web"), "main", "sleep")
					w.stop(m)
					for _, kind := range kinds {
						files, err := filepath.Glob(filepath.Join(w.dir, "journal", kind, "*"))
						if err != nil || len(files) != 1 {
							t.Fatal(files, err)
						}
						if err := spoil(files[0]); err != nil {
							t.Fatal(err)
						}
					}
					m = w.start()
					w.mustAgree(m)
					for _, sb := range m.Pods(t.Context()) {
						if err := m.RemovePod(t.Context(), sb.ID); err != nil {
							t.Fatal(err)
						}
					}
					w.mustBeEmpty("by records that are lost")
				})
			})
		}
	}
}

func TestStuckPodDoesNotKeepTheServerFromStarting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fake.FailOn("StartSandbox"))
		m := w.start()
		w.net.fail("Detach", errdefs.ErrUnavailable)
		if _, err := m.RunPod(t.Context(), sandbox("stuck")); err == nil {
			t.Fatal("RunPod worked with a broken engine")
		}
		w.stop(m)
		w.engine.Faults().Lift("StartSandbox")
		w.net.fail("Detach", nil)
		w.net.hang("Detach", true)
		began := time.Now()
		m = w.start(func(o *lifecycle.Options) { o.Times.Recover = 20 * time.Second })
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("the start took %v", took)
		}
		id := runPod(t, m, "other")
		w.net.hang("Detach", false)
		<-time.After(10 * time.Minute) // of the bubble's clock
		if err := m.RemovePod(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		w.mustBeEmpty("when the network answers again")
	})
}

func TestEngineThatIsDownAtTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := w.start()
		id := runContainer(t, m, runPod(t, m, "web"), "main", "sleep")
		key := keyOf(t, m, id)
		w.stop(m)
		w.engine.Faults().Add(fake.FailOn("Watch"), fake.FailOn("List"))
		w.engine.Exit(key, 6)
		m = w.start()
		if is := stateOf(t, m, id); is.State != pod.ContainerRunning {
			t.Errorf("without the engine's word: %s; want as it was recorded", is.State)
		}
		w.engine.Faults().Lift("Watch")
		w.engine.Faults().Lift("List")
		<-time.After(time.Minute) // of the bubble's clock
		if is := stateOf(t, m, id); is.State != pod.ContainerExited || is.ExitCode != 6 {
			t.Errorf("when the engine is back: %s, %d; want exited, 6", is.State, is.ExitCode)
		}
	})
}

func TestPodsOfAnEngineThatIsNotConfiguredAreLeftAlone(t *testing.T) {
	w := newWorld(t)
	second := fake.New()
	w.opts.Engines["second"], w.opts.Images["second"] = second, w.images
	w.opts.Handlers["old"] = "second"
	m := w.start()
	spec := sandbox("web")
	spec.Handler = "old"
	id, err := m.RunPod(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	runContainer(t, m, id, "main", "sleep")
	w.stop(m)
	before := w.left()
	m = w.start(func(o *lifecycle.Options) {
		o.Engines = map[string]engine.Engine{"fake": w.engine}
		o.Handlers = map[string]string{"": "fake"}
	})
	if n := len(m.Pods(t.Context())); n != 0 {
		t.Errorf("%d pods are listed", n)
	}
	w.stop(m)
	if after := w.left(); len(after) != len(before) || len(second.Everything()) != 2 {
		t.Errorf("before %v, after %v, the engine has %v", before, after, second.Everything())
	}
	m = w.start()
	if s := podState(m, id); s != "ready" {
		t.Errorf("with its engine configured again the pod is %s", s)
	}
}

func TestSandboxThatIsGoneMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := w.start()
		id := runPod(t, m, "web")
		cid := runContainer(t, m, id, "main", "sleep")
		w.engine.Vanish()
		w.engine.LoseWatches()
		<-time.After(time.Minute) // of the bubble's clock
		if s := podState(m, id); s != "notready" {
			t.Errorf("the pod is %s", s)
		}
		if is := stateOf(t, m, cid); is.State != pod.ContainerExited || is.Reason != pod.ReasonUnknown {
			t.Errorf("its container is %s, %s", is.State, is.Reason)
		}
		if err := m.RemovePod(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		w.mustBeEmpty("by a sandbox that vanished")
	})
}

func TestSandboxThatEndsByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := w.start()
		id := runPod(t, m, "web")
		cid := runContainer(t, m, id, "main", "sleep")
		sb, err := m.Pod(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		w.engine.EndSandbox(sb.Spec.Key)
		synctest.Wait()
		if s := podState(m, id); s != "notready" {
			t.Errorf("the pod is %s", s)
		}
		if is := stateOf(t, m, cid); is.State != pod.ContainerExited {
			t.Errorf("its container is %s", is.State)
		}
		if err := m.RemovePod(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		w.mustBeEmpty("by a sandbox that ended")
	})
}

func TestChildrenOfASharedPIDNamespaceEndWithTheirContainer(t *testing.T) {
	for rule, end := range map[string]func(*world, *lifecycle.Manager, string) error{
		"when it is stopped": func(w *world, m *lifecycle.Manager, id string) error {
			return m.StopContainer(w.t.Context(), id, time.Second)
		},
		"when it ends by itself": func(w *world, m *lifecycle.Manager, id string) error {
			w.engine.Exit(keyOf(w.t, m, id), 0)
			return nil
		},
	} {
		t.Run(rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				m := w.start()
				spec := container("main", "fork")
				spec.Namespaces.PID = pod.NamespacePod
				id, err := m.CreateContainer(t.Context(), runPod(t, m, "web"), spec)
				if err == nil {
					err = m.StartContainer(t.Context(), id)
				}
				if err == nil {
					err = end(w, m, id)
				}
				if err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				if all := w.engine.Everything(); len(all) != 2 {
					t.Errorf("%v; want the container and the sandbox alone", all)
				}
			})
		})
	}
}

func TestFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := w.start()
		id := runPod(t, m, "web")
		cid := runContainer(t, m, id, "main", "sleep")
		// Files where directories were fail every write, as a full disk does, also for root.
		for _, kind := range []string{"pods", "containers"} {
			dir := filepath.Join(w.dir, "journal", kind)
			if err := errors.Join(os.Rename(dir, dir+".away"), os.WriteFile(dir, nil, 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := m.RunPod(t.Context(), sandbox("more")); err == nil {
			t.Error("a pod runs that no record names")
		}
		w.engine.Exit(keyOf(t, m, cid), 3)
		synctest.Wait()
		if is := stateOf(t, m, cid); is.State != pod.ContainerExited || is.ExitCode != 3 {
			t.Errorf("an exit that cannot be written is not shown: %s, %d", is.State, is.ExitCode)
		}
		if err := m.StopPod(t.Context(), id); err != nil {
			t.Errorf("stop with a journal that cannot be written: %v", err)
		}
		for _, kind := range []string{"pods", "containers"} {
			dir := filepath.Join(w.dir, "journal", kind)
			if err := errors.Join(os.Remove(dir), os.Rename(dir+".away", dir)); err != nil {
				t.Fatal(err)
			}
		}
		<-time.After(5 * time.Minute) // of the bubble's clock: what failed is repeated
		if err := m.RemovePod(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		w.mustBeEmpty("when there is room again")
	})
}
