package lifecycle

import (
	"time"

	"gantry/internal/event"
	"gantry/internal/pod"
)

// Events begins to listen to what happens to pods and containers; since asks for what is kept of
// earlier events too, unless it is zero. The caller closes the subscription.
func (m *Manager) Events(since time.Time) *event.Subscription { return m.events.Subscribe(since) }

// EndEvents ends every subscription, and those that come later: the server is about to end.
func (m *Manager) EndEvents() { m.events.Close() }

// podChanged tells of a sandbox's change, if it is one that clients know of. A sandbox has stopped
// when all of StopPod is done, and is deleted when its record is.
func (m *Manager) podChanged(p *podEntry, was, is *pod.Sandbox) {
	switch {
	case is == nil:
		if was.State == pod.SandboxRemoving {
			m.tell(event.Deleted, was.ID, p)
		}
	case was.State == pod.SandboxCreating && is.State == pod.SandboxReady:
		m.tell(event.Created, is.ID, p)
		m.tell(event.Started, is.ID, p)
	case was.State != pod.SandboxCreating && !isStopped(was) && isStopped(is):
		m.tell(event.Stopped, is.ID, p)
	}
}

// isStopped says whether StopPod is done, or not to be waited for.
func isStopped(sb *pod.Sandbox) bool {
	return sb.State == pod.SandboxRemoving || sb.State == pod.SandboxNotReady && sb.Step == stopped
}

// containerChanged is podChanged for a container. One that ended before the engine had answered that
// it started has started all the same.
func (m *Manager) containerChanged(c *containerEntry, was, is *pod.Container) {
	switch {
	case is == nil:
		if was.State == pod.ContainerRemoving {
			m.tell(event.Deleted, was.ID, c.pod)
		}
	case was.State == is.State:
	case is.State == pod.ContainerCreated:
		m.tell(event.Created, is.ID, c.pod)
	case is.State == pod.ContainerRunning:
		m.tell(event.Started, is.ID, c.pod)
	case is.State == pod.ContainerExited:
		if was.State == pod.ContainerCreated && c.starting.Load() {
			m.tell(event.Started, is.ID, c.pod)
		}
		m.tell(event.Stopped, is.ID, c.pod)
	}
}

// tell publishes an event with the snapshots of the moment that the log gives it: a later event
// never shows an older state.
func (m *Manager) tell(kind event.Kind, id string, p *podEntry) {
	m.events.Publish(func() event.Event {
		ev := event.Event{Kind: kind, ID: id, Sandbox: p.now.Load()}
		for _, c := range m.index.containersOf(p.key) {
			if is := c.seen(); is != nil {
				ev.Containers = append(ev.Containers, is)
			}
		}
		return ev
	})
}
