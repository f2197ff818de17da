package lifecycle_test

import (
	"context"
	"errors"
	"runtime"
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

// client is a client that goes through everything a pod can live through. It ends early when an act
// does not return, because the server crashed in it.
type client struct {
	t   *testing.T
	w   *world
	m   *lifecycle.Manager
	err error // the first error that was not expected
}

// act runs one call and says whether to go on.
func (c *client) act(name string, do func(ctx context.Context) error) bool {
	returned := make(chan error, 1)
	go func() {
		defer close(returned)
		returned <- do(c.t.Context())
	}()
	err, ok := <-returned
	if !ok {
		return false
	}
	if err != nil && c.err == nil {
		c.err = errors.Join(errors.New(name), err)
	}
	return err == nil
}

// life goes from RunPod to RemovePod, repeating what a client would repeat.
func (c *client) life() bool {
	var podID, id string
	create := func(name string, words ...string) func(context.Context) error {
		return func(ctx context.Context) (err error) {
			id, err = c.m.CreateContainer(ctx, podID, container(name, words...))
			return err
		}
	}
	start := func(ctx context.Context) error {
		if err := c.m.StartContainer(ctx, id); !errdefs.IsFailedPrecondition(err) {
			return err
		}
		return nil // it was started before the crash
	}
	run := func(ctx context.Context) (err error) { podID, err = c.m.RunPod(ctx, sandbox("web")); return err }
	dir := c.t.TempDir()
	checkpointed := func(ctx context.Context) error { return c.m.CheckpointPod(ctx, podID, dir, []string{id}) }
	var copied string
	restore := func(ctx context.Context) error {
		p, err := c.m.RestorePod(ctx, dir, sandbox("copy"), []*pod.ContainerSpec{container("main", "ignore", "TERM")})
		if err == nil {
			copied = p.ID
		}
		return err
	}
	return c.act("run", run) &&
		c.act("create", create("main", "ignore", "TERM")) &&
		c.act("start", start) &&
		c.act("checkpoint", checkpointed) &&
		c.act("restore", restore) &&
		c.act("remove the copy", func(ctx context.Context) error { return c.m.RemovePod(ctx, copied) }) &&
		c.act("stop container", func(ctx context.Context) error { return c.m.StopContainer(ctx, id, time.Second) }) &&
		c.act("remove container", func(ctx context.Context) error { return c.m.RemoveContainer(ctx, id) }) &&
		c.act("create another", create("other", "sleep")) &&
		c.act("start another", start) &&
		c.act("stop pod", func(ctx context.Context) error { return c.m.StopPod(ctx, podID) }) &&
		c.act("remove pod", func(ctx context.Context) error { return c.m.RemovePod(ctx, podID) })
}

// provoke makes the operation fail whose undoing has the point.
func provoke(w *world, op lifecycle.Op) (lift func()) {
	switch op {
	case lifecycle.OpUndoPod:
		w.engine.Faults().Add(fake.LoseAnswerOf("StartSandbox"))
		return func() { w.engine.Faults().Lift("StartSandbox") }
	case lifecycle.OpUndoContainer:
		w.engine.Faults().Add(fake.LoseAnswerOf("CreateContainer"))
		return func() { w.engine.Faults().Lift("CreateContainer") }
	}
	return func() {}
}

func TestCrashAtEveryPointLosesNothing(t *testing.T) {
	for _, at := range lifecycle.Points() {
		t.Run(at.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				var crash sync.Once
				crashed := make(chan struct{})
				m := w.start(func(o *lifecycle.Options) {
					o.Hook = func(p lifecycle.Point) error {
						if p == at {
							crash.Do(func() { close(crashed) })
						}
						select {
						case <-crashed: // nothing runs after it
							runtime.Goexit()
						default:
						}
						return nil
					}
				})
				lift := provoke(w, at.Op)
				(&client{t: t, w: w, m: m}).life()
				select {
				case <-crashed:
				default:
					t.Fatal("this point was not reached")
				}
				w.stop(m)
				lift()
				m = w.start()
				w.mustAgree(m)
				after := &client{t: t, w: w, m: m}
				if !after.life() {
					t.Fatalf("the client's repeat after the crash: %v", after.err)
				}
				for _, sb := range m.Pods(t.Context()) { // an earlier one that had been stopped
					if err := m.RemovePod(t.Context(), sb.ID); err != nil {
						t.Fatal(err)
					}
				}
				w.mustBeEmpty("after crash, recovery, repeat and removal")
			})
		})
	}
}

func TestFailureAtEveryPointLosesNothing(t *testing.T) {
	for _, at := range lifecycle.Points() {
		t.Run(at.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				failed := false
				m := w.start(func(o *lifecycle.Options) {
					o.Hook = func(p lifecycle.Point) error {
						if p == at && !failed {
							failed = true
							return fake.ErrFault
						}
						return nil
					}
				})
				lift := provoke(w, at.Op)
				first := &client{t: t, w: w, m: m}
				if first.life() || !failed {
					t.Fatalf("the client noticed nothing; reached: %v", failed)
				}
				lift()
				<-time.After(5 * time.Second) // of the bubble's clock: what is repeated behind the calls
				synctest.Wait()
				w.mustAgree(m)
				again := &client{t: t, w: w, m: m}
				if !again.life() {
					t.Fatalf("the client's repeat after %v: %v", first.err, again.err)
				}
				for _, sb := range m.Pods(t.Context()) {
					if err := m.RemovePod(t.Context(), sb.ID); err != nil {
						t.Fatal(err)
					}
				}
				w.mustBeEmpty("after failure, repeat and removal")
			})
		})
	}
}

// mustAgree checks that what is there is what lists show.
func (w *world) mustAgree(m *lifecycle.Manager) {
	w.t.Helper()
	known := make(map[string]struct{})
	for _, sb := range m.Pods(context.Background()) {
		known[string(sb.Spec.Key)] = struct{}{}
	}
	for _, c := range m.Containers(context.Background()) {
		known[string(c.Spec.Key)] = struct{}{}
	}
	if paused := w.engine.Paused(); len(paused) > 0 {
		w.t.Errorf("still paused: %v", paused)
	}
	for _, left := range w.left() {
		key := strings.TrimSuffix(left[strings.LastIndexAny(left, " /")+1:], ".json")
		if _, ok := known[key]; !ok {
			w.t.Errorf("in no list: %s", left)
		}
	}
}

func TestBrokenEngineLeavesNothing(t *testing.T) {
	for _, method := range []string{"CreateSandbox", "StartSandbox", "CreateContainer"} {
		for rule, fault := range map[string]fake.Option{
			"that fails":                      fake.FailOn(method),
			"that loses answers":              fake.LoseAnswerOf(method),
			"that hangs till the caller left": fake.HangOn(method),
		} {
			t.Run(method+" "+rule, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, fault)
					m := w.start()
					ctx, cancel := context.WithTimeout(t.Context(), time.Second)
					defer cancel()
					id, err := m.RunPod(ctx, sandbox("web"))
					if err == nil {
						_, err = m.CreateContainer(ctx, id, container("main"))
					}
					if err == nil {
						t.Fatal("it worked with a broken engine")
					}
					<-time.After(10 * time.Minute) // of the bubble's clock: more than an attempt lingers
					if err := m.RemovePod(t.Context(), id); id != "" && err != nil {
						t.Fatal(err)
					}
					w.mustBeEmpty("by a broken engine")
				})
			})
		}
	}
}

// A CNI plugin without the namespace cannot find what it has to give back.
func TestNamespaceStaysUntilTheNetworkIsDetached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		m := w.start()
		id, err := m.RunPod(t.Context(), sandbox("web"))
		if err != nil {
			t.Fatal(err)
		}
		had := len(w.engine.Everything())
		w.net.fail("Detach", errdefs.ErrUnavailable)
		if err = m.StopPod(t.Context(), id); !errdefs.IsUnavailable(err) {
			t.Errorf("StopPod: %v", err)
		}
		if err = m.RemovePod(t.Context(), id); !errdefs.IsUnavailable(err) {
			t.Errorf("RemovePod: %v", err)
		}
		if left := w.engine.Everything(); len(left) != had {
			t.Errorf("left %v: the namespace is gone while the network holds on to it", left)
		}
		w.net.fail("Detach", nil)
		<-time.After(2 * time.Minute) // of the bubble's clock
		w.mustBeEmpty("when the network answers again")
	})
}

func TestUndoGoesOnPastErrorsAndIsRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fake.FailOn("StartSandbox"), fake.FailOn("StopSandbox"))
		m := w.start()
		if _, err := m.RunPod(t.Context(), sandbox("web")); !errors.Is(err, fake.ErrFault) {
			t.Fatalf("RunPod: %v; want the fault that ended it", err)
		}
		if len(m.Pods(t.Context())) != 0 {
			t.Error("a pod that is being undone is listed")
		}
		w.engine.Faults().Lift("StopSandbox")
		<-time.After(2 * time.Minute) // of the bubble's clock
		w.mustBeEmpty("when the engine works again")
	})
}

func TestFailedUndoIsFinishedByTheNextServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, fake.FailOn("StartSandbox"), fake.FailOn("RemoveSandbox"))
		m := w.start()
		if _, err := m.RunPod(t.Context(), sandbox("web")); err == nil {
			t.Fatal("RunPod worked with a broken engine")
		}
		w.stop(m)
		w.engine.Faults().Lift("RemoveSandbox")
		w.start()
		w.mustBeEmpty("after the next start")
	})
}

func TestBadContainersLeaveNothing(t *testing.T) {
	for rule, c := range map[string]struct {
		spec  *pod.ContainerSpec
		class func(error) bool
	}{
		"an absent image is ErrNotFound": {&pod.ContainerSpec{Name: "main", ImageID: "localhost/none:1"}, errdefs.IsNotFound},
		"an absent target is ErrNotFound": {&pod.ContainerSpec{
			Name: "main", ImageID: image, Namespaces: pod.Namespaces{PID: pod.NamespaceTarget, TargetID: "nobody"},
		}, errdefs.IsNotFound},
	} {
		t.Run(rule, func(t *testing.T) {
			w := newWorld(t)
			m := w.start()
			id := runPod(t, m, "web")
			if _, err := m.CreateContainer(t.Context(), id, c.spec); !c.class(err) {
				t.Errorf("%v is of another class", err)
			}
			if err := m.RemovePod(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			w.mustBeEmpty("by a container that could not be")
		})
	}
}
