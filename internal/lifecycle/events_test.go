package lifecycle_test

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"gantry/internal/engine/fake"
	"gantry/internal/event"
	"gantry/internal/lifecycle"
	"gantry/internal/pod"
)

// told are the events so far as "created main", with the names of containers and pods.
func told(m *lifecycle.Manager, names map[string]string) (all []string) {
	s := m.Events(time.Unix(1, 0))
	defer s.Close()
	for _, ev := range s.Replay {
		all = append(all, fmt.Sprintf("%s %s", ev.Kind, names[ev.ID]))
	}
	return all
}

func TestEventsOfALife(t *testing.T) {
	m := newWorld(t).start()
	web := runPod(t, m, "web")
	main := runContainer(t, m, web, "main", "sleep")
	other := createContainer(t, m, web, "other", "sleep")
	for _, act := range []error{
		m.StopContainer(t.Context(), main, time.Second), m.RemoveContainer(t.Context(), main),
		m.StopPod(t.Context(), web), m.StopPod(t.Context(), web), m.RemovePod(t.Context(), web),
	} {
		if act != nil {
			t.Fatal(act)
		}
	}
	want := []string{
		"created web", "started web", "created main", "started main", "created other", "stopped main", "deleted main",
		"stopped other", "stopped web", "deleted other", "deleted web",
	}
	if got := told(m, map[string]string{web: "web", main: "main", other: "other"}); !slices.Equal(got, want) {
		t.Errorf("told %q, want %q", got, want)
	}
}

func TestEventsShowTheMoment(t *testing.T) {
	m := newWorld(t).start()
	s := m.Events(time.Time{})
	defer s.Close()
	web := runPod(t, m, "web")
	id := runContainer(t, m, web, "main", "sleep")
	if err := m.RemoveContainer(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	for _, want := range []struct {
		kind       event.Kind
		containers []pod.ContainerState
	}{
		{event.Created, nil}, {event.Started, nil},
		{event.Created, []pod.ContainerState{pod.ContainerCreated}}, {event.Started, []pod.ContainerState{pod.ContainerRunning}},
		{event.Stopped, []pod.ContainerState{pod.ContainerExited}}, {event.Deleted, nil},
	} {
		ev := <-s.Events()
		var states []pod.ContainerState
		for _, c := range ev.Containers {
			states = append(states, c.State)
		}
		if ev.Kind != want.kind || !slices.Equal(states, want.containers) || ev.Sandbox.ID != web || ev.Sandbox.State != pod.SandboxReady {
			t.Errorf("%s with %v in a sandbox that is %s, want %s with %v", ev.Kind, states, ev.Sandbox.State, want.kind, want.containers)
		}
	}
}

func TestEventsOfWhatEndsAtOnceOrNeverStarts(t *testing.T) {
	for rule, c := range map[string]struct {
		words  []string
		faults []fake.Option
		want   []string
	}{
		"an exit quicker than the start's answer": {[]string{"exit", "0"}, nil, []string{"created main", "started main", "stopped main"}},
		"a start that fails":                      {[]string{"sleep"}, []fake.Option{fake.FailOn("StartContainer")}, []string{"created main", "stopped main"}},
	} {
		t.Run(rule, func(t *testing.T) {
			m := newWorld(t, c.faults...).start()
			web := runPod(t, m, "web")
			id := createContainer(t, m, web, "main", c.words...)
			_ = m.StartContainer(t.Context(), id)
			if err := m.StopContainer(t.Context(), id, 0); err != nil {
				t.Fatal(err)
			}
			awaitStopped(m, id) // a status shows the exit a moment before it is told of
			if got := told(m, map[string]string{web: "web", id: "main"}); !slices.Equal(got[2:], c.want) {
				t.Errorf("told %q, want %q", got[2:], c.want)
			}
		})
	}
}

// awaitStopped returns when it was told that a container has stopped.
func awaitStopped(m *lifecycle.Manager, id string) {
	s := m.Events(time.Unix(1, 0))
	defer s.Close()
	stopped := func(ev event.Event) bool { return ev.Kind == event.Stopped && ev.ID == id }
	if slices.ContainsFunc(s.Replay, stopped) {
		return
	}
	for ev := range s.Events() {
		if stopped(ev) {
			return
		}
	}
}

func TestAPodThatNeverWasIsNotToldOf(t *testing.T) {
	w := newWorld(t)
	m := w.start()
	w.net.fail("Attach", errors.New("no addresses"))
	if _, err := m.RunPod(t.Context(), sandbox("web")); err == nil {
		t.Fatal("it ran")
	}
	if got := told(m, nil); len(got) > 0 {
		t.Errorf("told %q", got)
	}
}

// Whatever runs side by side: stamps increase strictly, and no later event shows an older state.
func TestEventsUnderConcurrency(t *testing.T) {
	m := newWorld(t).start(func(o *lifecycle.Options) { o.Events = event.Options{Keep: 10_000} })
	var pods sync.WaitGroup
	for i := range 8 {
		pods.Go(func() {
			id, err := m.RunPod(t.Context(), sandbox(fmt.Sprint("p", i)))
			if err != nil {
				t.Error(err)
				return
			}
			var containers sync.WaitGroup
			for j := range 8 {
				containers.Go(func() {
					c, err := m.CreateContainer(t.Context(), id, container(fmt.Sprint("c", j), "sleep"))
					if err == nil {
						err = errors.Join(m.StartContainer(t.Context(), c), m.StopContainer(t.Context(), c, 0), m.RemoveContainer(t.Context(), c))
					}
					if err != nil {
						t.Error(err)
					}
				})
			}
			containers.Wait()
			if err := m.RemovePod(t.Context(), id); err != nil {
				t.Error(err)
			}
		})
	}
	pods.Wait()
	s := m.Events(time.Unix(1, 0))
	defer s.Close()
	if want := 8 * (4 + 8*4); len(s.Replay) != want {
		t.Errorf("%d events, want %d", len(s.Replay), want)
	}
	order := map[pod.ContainerState]int{pod.ContainerCreated: 1, pod.ContainerRunning: 2, pod.ContainerExited: 3}
	last, seen := time.Time{}, map[string]int{}
	for _, ev := range s.Replay {
		if !ev.At.After(last) {
			t.Fatalf("%v does not come after %v", ev.At, last)
		}
		last = ev.At
		for _, c := range ev.Containers {
			if order[c.State] < seen[c.ID] {
				t.Errorf("a later event shows %s as %s", c.ID, c.State)
			}
			seen[c.ID] = order[c.State]
		}
		if ev.Kind == event.Deleted {
			seen[ev.ID] = 4
		}
	}
}
