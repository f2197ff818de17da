package lifecycle_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

	"gantry/internal/engine/fake"
	"gantry/internal/lifecycle"
	"gantry/internal/pod"
)

// gate makes an engine's method wait until open is called.
func (w *world) gate(method string) (arrived <-chan struct{}, open func()) {
	in, gate := make(chan struct{}, 100), make(chan struct{})
	w.engine.Faults().Gate(method, in, gate)
	return in, sync.OnceFunc(func() { close(gate) })
}

type result struct {
	id  string
	err error
}

func runLater(ctx context.Context, m *lifecycle.Manager, spec *pod.SandboxSpec) <-chan result {
	ch := make(chan result, 1)
	go func() {
		id, err := m.RunPod(ctx, spec)
		ch <- result{id, err}
	}()
	return ch
}

func TestRetriedRunPodJoinsTheAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := w.start()
		arrived, open := w.gate("CreateSandbox")
		impatient, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		first := runLater(impatient, m, sandbox("web"))
		<-arrived
		if r := <-first; !errors.Is(r.err, context.DeadlineExceeded) {
			t.Fatalf("the caller that gave up: %v", r.err)
		}
		second := runLater(t.Context(), m, sandbox("web"))
		synctest.Wait()
		open()
		r := <-second
		if r.err != nil {
			t.Fatal(r.err)
		}
		third, err := m.RunPod(t.Context(), sandbox("web"))
		if err != nil || third != r.id {
			t.Errorf("a repeat afterwards: %s, %v; want %s", third, err, r.id)
		}
		if all := w.engine.Everything(); len(all) != 1 {
			t.Errorf("the engine has %v; want one sandbox", all)
		}
		other := sandbox("web")
		other.Metadata.Attempt = 1
		if id, err := m.RunPod(t.Context(), other); err != nil || id == r.id {
			t.Errorf("another attempt number: %s, %v; want a sandbox of its own", id, err)
		}
	})
}

func TestAttemptNobodyWaitsForFinishesOrIsUndone(t *testing.T) {
	for rule, c := range map[string]struct {
		opensAfter time.Duration
		ready      int
	}{
		"it finishes while it lingers and a repeat finds it": {time.Minute, 1},
		"it is undone when it takes longer":                  {time.Hour, 0},
	} {
		t.Run(rule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				m := w.start()
				_, open := w.gate("StartSandbox")
				ctx, cancel := context.WithCancel(t.Context())
				left := runLater(ctx, m, sandbox("web"))
				synctest.Wait()
				cancel()
				if r := <-left; !errors.Is(r.err, context.Canceled) {
					t.Fatal(r.err)
				}
				<-time.After(c.opensAfter) // of the bubble's clock
				open()
				synctest.Wait()
				if n := len(m.Pods(t.Context())); n != c.ready {
					t.Errorf("%d pods are listed; want %d", n, c.ready)
				}
				if c.ready == 0 {
					w.mustBeEmpty("by an attempt that nobody waited for")
				}
				runPod(t, m, "web")
				if n := len(m.Pods(t.Context())); n != 1 {
					t.Errorf("%d pods are listed after the repeat; want 1", n)
				}
			})
		})
	}
}

func TestRetriedCreateContainerJoinsTheAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := w.start()
		podID := runPod(t, m, "web")
		_, open := w.gate("CreateContainer")
		ids := make([]string, 3)
		var wg sync.WaitGroup
		for i := range ids {
			wg.Go(func() {
				spec := container("main", "sleep")
				// The kubelet chooses another host path at every try.
				spec.Mounts = []pod.Mount{{ContainerPath: "/dev/termination-log", HostPath: fmt.Sprint("/try-", i)}}
				var err error
				if ids[i], err = m.CreateContainer(t.Context(), podID, spec); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		open()
		wg.Wait()
		again := createContainer(t, m, podID, "main", "sleep")
		if ids[0] != ids[1] || ids[1] != ids[2] || again != ids[0] || len(m.Containers(t.Context())) != 1 {
			t.Errorf("got %v and %s; want one container", ids, again)
		}
		if other := createContainer(t, m, podID, "main", "another command"); other == again {
			t.Error("another command is another container, not a repeat")
		}
		if err := m.StartContainer(t.Context(), again); err != nil {
			t.Fatal(err)
		}
		if fresh := createContainer(t, m, podID, "main", "sleep"); fresh == again {
			t.Error("a container that was started is no result of a create that is asked for now")
		}
	})
}

func TestOneSlowPodDelaysNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := w.start()
		w.net.hang("Attach", true)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		slow := runLater(ctx, m, sandbox("slow"))
		synctest.Wait()
		w.net.hang("Attach", false)
		began := time.Now()
		id := runPod(t, m, "quick")
		runContainer(t, m, id, "main", "sleep")
		if err := m.RemovePod(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if waited := time.Since(began); waited > 0 {
			t.Errorf("the quick pod waited %v", waited)
		}
		s, err := m.Status(t.Context())
		if err != nil || len(s.Verbose) != 3 {
			t.Errorf("Status %+v, %v; want it to tell of the pod that hangs", s, err)
		}
		cancel()
		<-slow
	})
}

func TestStopPodEndsWhatHangsInIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := w.start()
		id := runPod(t, m, "web")
		w.engine.Faults().Add(fake.HangOn("CreateContainer"))
		created := make(chan error, 1)
		go func() {
			_, err := m.CreateContainer(t.Context(), id, container("main"))
			created <- err
		}()
		synctest.Wait()
		if err := m.StopPod(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if err := <-created; !errdefs.IsFailedPrecondition(err) {
			t.Errorf("the create that hung: %v; want ErrFailedPrecondition", err)
		}
		if err := m.RemovePod(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		w.mustBeEmpty("by a container that hung")
	})
}

func TestRunPodDoesNotTakeAPodThatIsBeingStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := w.start()
		old := runPod(t, m, "web")
		w.engine.Faults().Add(fake.HangOn("SignalContainer"))
		runContainer(t, m, old, "main", "sleep")
		stopped := make(chan error, 1)
		go func() { stopped <- m.StopPod(t.Context(), old) }()
		synctest.Wait()
		if fresh := runPod(t, m, "web"); fresh == old {
			t.Error("RunPod gave the id of a pod whose end had begun")
		}
		w.engine.Faults().Lift("SignalContainer")
		<-stopped
	})
}

func TestManyPodsAtOnce(t *testing.T) {
	w := newWorld(t)
	m := w.start()
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			id, err := m.RunPod(t.Context(), sandbox(fmt.Sprint("pod-", i)))
			if err != nil {
				t.Error(err)
				return
			}
			for j := range 3 {
				cid, err := m.CreateContainer(t.Context(), id, container(fmt.Sprint("c-", j), "ignore", "TERM"))
				if err == nil {
					err = m.StartContainer(t.Context(), cid)
				}
				if err == nil {
					_, err = m.ExecSync(t.Context(), cid, []string{"exit", "0"}, 0)
				}
				if err != nil {
					t.Error(err)
				}
			}
			if err := errors.Join(m.StopPod(t.Context(), id), m.RemovePod(t.Context(), id)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	w.mustBeEmpty("by many pods")
}

func TestStatusSaysWhatWasCheckedNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := w.start()
		check := func() *pod.NodeStatus {
			s, err := m.Status(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		if s := check(); s.Runtime != nil || s.Network != nil || len(s.Handlers) != 1 {
			t.Errorf("all is well: %+v", s)
		}
		w.engine.Faults().Fail("Status", errdefs.ErrUnavailable)
		w.net.fail("Status", errdefs.ErrNotFound)
		if s := check(); !errdefs.IsUnavailable(s.Runtime) || !errdefs.IsNotFound(s.Network) {
			t.Errorf("both are broken: %v, %v", s.Runtime, s.Network)
		}
		w.net.fail("Status", nil)
		w.net.hang("Status", true)
		began := time.Now()
		if s := check(); s.Network == nil || !strings.HasPrefix(s.Network.Error(), "Status was cut off: ") || time.Since(began) > 10*time.Second {
			t.Errorf("a network that hangs: %v after %v; want it in the network's own words", s.Network, time.Since(began))
		}
		w.net.hang("Status", false)
	})
}
