package docker

import (
	"context"

	"gantry/internal/pod"
)

// Logs is where the output of containers goes: into CRI log files, whatever Docker's API has for it.
// Every method may be repeated.
type Logs interface {
	// Config says how dockerd is to log a container that is about to be created: the driver and its
	// options (HostConfig.LogConfig of Docker's API). Path is the CRI log, "" when nothing is logged. Bounds,
	// nil for none, that the log can't have are errdefs.ErrNotImplemented.
	Config(ctx context.Context, key pod.Key, path string, bounds *pod.LogBounds) (driver string, options map[string]string, err error)
	// Follow is told Docker's id of a container before it starts, and after every restart of the server
	// or of dockerd for what runs or has ended and was not removed.
	Follow(ctx context.Context, key pod.Key, id string) error
	// Reopen opens the log anew after it was renamed away.
	Reopen(ctx context.Context, key pod.Key) error
	// Close forgets the container, which has been removed. The file stays: it is the kubelet's.
	Close(ctx context.Context, key pod.Key) error
}
