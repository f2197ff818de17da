package pod

import (
	"fmt"
	"time"

	"github.com/containerd/errdefs"
)

// SandboxState is the state of a sandbox.
type SandboxState string

// The states of a sandbox. A creating sandbox is in the journal but in no list.
const (
	SandboxCreating SandboxState = "creating"
	SandboxReady    SandboxState = "ready"
	SandboxNotReady SandboxState = "notready"
	SandboxRemoving SandboxState = "removing"
)

// ContainerState is the state of a container.
type ContainerState string

// The states of a container. Creating and removing are in the journal but in no list.
const (
	ContainerCreating ContainerState = "creating"
	ContainerCreated  ContainerState = "created"
	ContainerRunning  ContainerState = "running"
	ContainerExited   ContainerState = "exited"
	ContainerRemoving ContainerState = "removing"
)

var sandboxMoves = map[SandboxState][]SandboxState{
	SandboxCreating: {SandboxReady, SandboxRemoving},
	SandboxReady:    {SandboxNotReady, SandboxRemoving},
	SandboxNotReady: {SandboxRemoving},
}

var containerMoves = map[ContainerState][]ContainerState{
	ContainerCreating: {ContainerCreated, ContainerRemoving},
	ContainerCreated:  {ContainerRunning, ContainerExited, ContainerRemoving},
	ContainerRunning:  {ContainerExited},
	ContainerExited:   {ContainerRemoving},
}

// To returns a copy of s in state next, or errdefs.ErrFailedPrecondition when that move is illegal.
// Moving to the state it has is legal and changes nothing.
func (s *Sandbox) To(next SandboxState) (*Sandbox, error) {
	if !legal(sandboxMoves, s.State, next) {
		return nil, fmt.Errorf("sandbox %s: %s cannot become %s: %w", s.Spec.Key.Short(), s.State, next, errdefs.ErrFailedPrecondition)
	}
	c := *s
	c.State = next
	return &c, nil
}

// To returns a copy of c in state next, or errdefs.ErrFailedPrecondition when that move is illegal.
func (c *Container) To(next ContainerState) (*Container, error) {
	if !legal(containerMoves, c.State, next) {
		return nil, fmt.Errorf("container %s: %s cannot become %s: %w", c.Spec.Key.Short(), c.State, next, errdefs.ErrFailedPrecondition)
	}
	n := *c
	n.State = next
	return &n, nil
}

// Exited returns a copy of c that ended as e says, with the reason that the kubelet shows. It never ended
// before it started: dockerd up to 20.10 notes a quick process's exit first and its start afterwards.
func (c *Container) Exited(e Exit) (*Container, error) {
	n, err := c.To(ContainerExited)
	if err != nil {
		return nil, err
	}
	n.Pid = 0
	n.ExitCode = e.Code
	n.FinishedAt = e.At
	if n.FinishedAt.IsZero() {
		n.FinishedAt = time.Now()
	}
	if n.FinishedAt.Before(n.StartedAt) {
		n.FinishedAt = n.StartedAt
	}
	n.Reason = reason(e)
	return n, nil
}

func reason(e Exit) string {
	switch {
	case e.Unknown:
		return ReasonUnknown
	case e.OOMKilled:
		return ReasonOOMKilled
	case e.Code == 0:
		return ReasonCompleted
	}
	return ReasonError
}

func legal[S comparable](moves map[S][]S, from, to S) bool {
	if from == to {
		return true
	}
	for _, m := range moves[from] {
		if m == to {
			return true
		}
	}
	return false
}
