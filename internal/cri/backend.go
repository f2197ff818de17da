package cri

import (
	"context"
	"io"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/engine"
	"gantry/internal/event"
	"gantry/internal/pod"
)

// Pods is the slice of lifecycle that serves sandboxes. Ids are full ids or unambiguous prefixes.
// Snapshots are shared: they are read, never changed, by either side; the same ones give the same answer.
type Pods interface {
	RunPod(ctx context.Context, spec *pod.SandboxSpec) (id string, err error)
	StopPod(ctx context.Context, id string) error
	RemovePod(ctx context.Context, id string) error
	Pod(ctx context.Context, id string) (*pod.Sandbox, error)
	Pods(ctx context.Context) []*pod.Sandbox
}

// Containers is the slice of lifecycle that serves containers.
type Containers interface {
	CreateContainer(ctx context.Context, podID string, spec *pod.ContainerSpec) (id string, err error)
	StartContainer(ctx context.Context, id string) error
	// StopContainer sends the stop signal, waits for grace and kills. Zero kills at once.
	StopContainer(ctx context.Context, id string, grace time.Duration) error
	RemoveContainer(ctx context.Context, id string) error
}

// Checkpoints is the slice of lifecycle that writes containers to the disk and makes them again. All of
// it ends with ctx.
type Checkpoints interface {
	CheckpointContainer(ctx context.Context, id, location string) error
	CheckpointPod(ctx context.Context, podID, dir string, ids []string) error
	RestorePod(ctx context.Context, dir string, spec *pod.SandboxSpec, containers []*pod.ContainerSpec) (*pod.RestoredPod, error)
}

// Resizer changes limits of what runs. What a request leaves zero stays.
type Resizer interface {
	UpdateContainer(ctx context.Context, id string, r *pod.Resources) error
	// UpdatePod takes the pod's new sums; each may be nil.
	UpdatePod(ctx context.Context, id string, overhead, resources *pod.Resources) error
}

// ContainerViews answers about containers from memory.
type ContainerViews interface {
	Container(ctx context.Context, id string) (*pod.Container, error)
	Containers(ctx context.Context) []*pod.Container
}

// Statistics reads what is used now. What does not run is ErrFailedPrecondition or ErrNotFound.
type Statistics interface {
	ContainerStats(ctx context.Context, id string) (*pod.Stats, error)
	PodStats(ctx context.Context, id string) (*pod.Stats, error)
	// ContainerMetrics and PodMetrics read more, at a higher cost.
	ContainerMetrics(ctx context.Context, id string) (*pod.Metrics, error)
	PodMetrics(ctx context.Context, id string) (*pod.Metrics, error)
}

// Events tells what happens to pods and containers.
type Events interface {
	// Events begins to listen, with a replay of what is kept since then unless that is zero.
	Events(since time.Time) *event.Subscription
}

// Streams is the slice of lifecycle that moves bytes.
type Streams interface {
	// ExecSync runs args until they end or timeout (0: no limit) has passed and then fails with
	// context.DeadlineExceeded, wrapped. Output beyond the bound is discarded and counted in Discarded.
	ExecSync(ctx context.Context, id string, args []string, timeout time.Duration) (*pod.ExecResult, error)
	Exec(ctx context.Context, id string, req *engine.Exec) (exitCode int32, err error)
	Attach(ctx context.Context, id string, s engine.IO) error
	PortForward(ctx context.Context, podID string, port int32, stream io.ReadWriteCloser) error
	ReopenLog(ctx context.Context, id string) error
}

// Images is the one namespace over all image stores.
type Images interface {
	// PullImage pulls into the store of the engine that podUID's sandbox is on, else of the default engine.
	PullImage(ctx context.Context, podUID string, p *pod.Pull) (id string, err error)
	Image(ctx context.Context, ref string) (*pod.Image, error)
	ListImages(ctx context.Context) ([]*pod.Image, error)
	RemoveImage(ctx context.Context, ref string) error
	ImageUsage(ctx context.Context) (images, layers []pod.Usage, err error)
}

// Node is what Status and RuntimeConfig report.
type Node interface {
	Status(ctx context.Context) (*pod.NodeStatus, error)
}

// StreamURLs hands out addresses that can be used once, soon.
type StreamURLs interface {
	Exec(req *runtime.ExecRequest) (url string, err error)
	Attach(req *runtime.AttachRequest) (url string, err error)
	PortForward(req *runtime.PortForwardRequest) (url string, err error)
}
