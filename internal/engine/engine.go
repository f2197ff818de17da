// Package engine is the seam between the pod logic and whatever runs the containers.
//
// An engine offers primitives, not policy: it makes sandboxes and containers, starts, signals and
// removes them, moves their streams, and tells what is there. Everything that can be derived from
// the primitives (stopping with a grace period, ExecSync, recovery, garbage collection) is written
// once, in lifecycle. No CRI protobuf and no OCI spec crosses this seam.
//
// Every call may be repeated: doing what is already done succeeds, and so does undoing what was
// never done. An engine keeps no durable state but what it made; List tells the truth after a crash.
// Errors are classified with containerd/errdefs: ErrNotFound, ErrInvalidArgument for a request that
// can never work, ErrNotImplemented for what this engine cannot express (naming the field),
// ErrUnavailable when what stands behind the engine does not answer.
//
// Package enginetest holds this contract as tests.
package engine

import (
	"context"
	"io"

	"gantry/internal/pod"
)

// Engine runs containers in pod sandboxes.
type Engine interface {
	Sandboxes
	Containers
	Streams
	Observer
}

// Sandboxes makes what the containers of a pod share.
type Sandboxes interface {
	// CreateSandbox makes the namespaces, unconnected, and what else the pod shares (/dev/shm,
	// hostname, sysctls, a pause container where the engine or a shared PID namespace needs one).
	// Files holds the paths that lifecycle wrote for this pod. After it, the network namespace
	// exists at Made.NetNS and the network may be attached.
	CreateSandbox(ctx context.Context, spec *pod.SandboxSpec, files Files) (Made, error)
	// StartSandbox comes after the network: an engine whose sandbox boots does it here.
	StartSandbox(ctx context.Context, key pod.Key) error
	// UpdateSandbox applies the pod's new total of resources.
	UpdateSandbox(ctx context.Context, key pod.Key, r *pod.Resources) error
	// StopSandbox ends what the engine runs for the sandbox itself and gives back its namespaces.
	// The containers are stopped and the network is detached before.
	StopSandbox(ctx context.Context, key pod.Key) error
	// RemoveSandbox removes everything CreateSandbox made, whatever StopSandbox left.
	RemoveSandbox(ctx context.Context, key pod.Key) error
}

// Files are the files of a pod that lifecycle wrote before the sandbox is created.
type Files struct {
	Dir        string // the pod's directory below the state directory; the engine may use Dir/engine
	ResolvConf string
	Hosts      string // "" when the client mounts its own, as the kubelet does
	Hostname   string
}

// Made is what CreateSandbox made.
type Made struct {
	ID    string // shown by the CRI
	NetNS string // path of the network namespace, "" on the host network
	// CgroupPath is the cgroup that the pod's containers will be below, "" where there is none.
	CgroupPath string
}

// Containers makes and ends containers in a sandbox.
type Containers interface {
	// CreateContainer prepares the root file system from the image, the log and the process up to
	// the point where StartContainer only has to let it go.
	CreateContainer(ctx context.Context, req *Create) (Created, error)
	// StartContainer lets the container's process run. Of one that runs it says the same again; one
	// that has ended is no error.
	StartContainer(ctx context.Context, key pod.Key) (Started, error)
	// SignalContainer sends a signal to the main process, or to every process of the container's
	// cgroup. A container that has ended is no error.
	SignalContainer(ctx context.Context, key pod.Key, s Signal) error
	// UpdateContainer applies new limits to a created or running container. Calls for one container do
	// not overlap with each other, nor with its start and removal.
	UpdateContainer(ctx context.Context, key pod.Key, r *pod.Resources) error
	// RemoveContainer removes everything CreateContainer made. A container that still runs is killed.
	RemoveContainer(ctx context.Context, key pod.Key) error
}

// Create is a request for a container.
type Create struct {
	Spec    *pod.ContainerSpec
	Sandbox *pod.Sandbox
	Files   Files      // of the sandbox
	Image   *pod.Image // resolved by lifecycle from the image namespace
	// Restore, if set, is the checkpoint that StartContainer restores instead of starting a new process.
	// Engines that are no Checkpointer refuse it.
	Restore *Restore
	// TargetPid is the node's pid of the container whose PID namespace is joined (NamespaceTarget).
	TargetPid int
	// Adjust is what plugins want changed beyond what Spec already says, nil for nothing. An engine
	// applies all of it, or refuses what it cannot express with errdefs.ErrNotImplemented, naming the field.
	Adjust *pod.Adjustment
}

// Restore says which checkpoint a container is made of.
type Restore struct {
	Dir string // unpacked, as package checkpoint describes it; it stays until StartContainer has returned
	// Exact says that the spec describes the process that was checkpointed: one that differs is
	// ErrInvalidArgument. Else the checkpoint's process counts, whatever the spec says.
	Exact bool
}

// Created is what CreateContainer made.
type Created struct {
	ID         string
	Pid        int
	CgroupPath string // begins with "/", below the cgroup mount; the same in every v1 hierarchy
	StopSignal string // the image's stop signal where it has one
	User       *User  // who the main process runs as; nil where the engine does not know
	// BlockIOClass and RDTClass are those that a plugin, the container's annotations or its pod's asked for.
	BlockIOClass string
	RDTClass     string
}

// Started is what only the start tells on an engine that has no process before. Zero fields leave
// what Created said.
type Started struct {
	Pid        int
	CgroupPath string
}

// User is the identity a container's process was given.
type User = pod.User

// Signal is a signal for a container. All sends it to every process in the container's cgroup.
type Signal struct {
	Name string // "SIGTERM", "TERM" or "15"
	All  bool
}

// Streams moves bytes between a client and processes.
type Streams interface {
	// Exec runs a further process in a running container and returns its exit code when it ended and
	// its output was delivered (a child that keeps the pipe open does not delay the return by more
	// than a moment). When ctx ends, the process and its children are killed and ctx's error is returned.
	Exec(ctx context.Context, key pod.Key, req *Exec) (exitCode int32, err error)
	// Attach connects to the container's own streams until it ends, the client leaves or ctx ends.
	Attach(ctx context.Context, key pod.Key, s IO) error
}

// Exec is a request to run a process in a container, with the container's own identity.
type Exec struct {
	Args []string
	TTY  bool
	IO   IO
}

// IO are a client's streams. A nil stream is not wanted. With a terminal Stderr stays nil.
type IO struct {
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
	// Resize delivers terminal sizes until it is closed; nil without a terminal.
	Resize <-chan Size
}

// Size is a terminal's size in characters.
type Size struct {
	Width  uint16
	Height uint16
}

// Observer tells what there is and what happens.
type Observer interface {
	// List returns everything that is ours: whatever carries one of our keys, also what was left
	// half made by a crash.
	List(ctx context.Context) (Inventory, error)
	// Watch delivers exits and OOM kills from now on, and those of containers that List has shown as
	// running. The channel is closed when ctx ends or the engine lost its source; the caller then
	// lists and watches again. A slow reader delays only itself.
	Watch(ctx context.Context) (<-chan Event, error)
	// Status says whether the engine can run containers now, nil or the reason why not.
	Status(ctx context.Context) error
}

// Inventory is what an engine has.
type Inventory struct {
	Sandboxes  []SandboxInfo
	Containers []ContainerInfo
}

// SandboxInfo is a sandbox as the engine sees it.
type SandboxInfo struct {
	Key   pod.Key
	ID    string
	NetNS string
	Ready bool // its namespaces, and its pause process where there is one, exist
}

// ContainerInfo is a container as the engine sees it.
type ContainerInfo struct {
	Key        pod.Key
	ID         string
	State      pod.ContainerState
	Pid        int
	CgroupPath string
	Exit       *pod.Exit // when State is exited
	LogDropped int64     // see pod.Container
}

// Event is an exit or an OOM kill.
type Event struct {
	Key  pod.Key   // of a container, or of a sandbox whose own process has ended
	Exit *pod.Exit // nil for an OOM kill that the container survived
	// LogDropped, if not zero, is the container's by now; such an event tells nothing else.
	LogDropped int64
}

// Images is an engine's image store. Docker brings its own; native engines share one.
type Images interface {
	// Pull fetches an image and returns its id. Two pulls of one image join.
	Pull(ctx context.Context, p *pod.Pull) (id string, err error)
	// Get finds an image by id, unambiguous id prefix, tag or digest; ErrNotFound when it is absent.
	Get(ctx context.Context, ref string) (*pod.Image, error)
	List(ctx context.Context) ([]*pod.Image, error)
	// Remove removes the image that ref names, with all its names; absent is no error.
	Remove(ctx context.Context, ref string) error
	// Usage tells the bytes of images and of writable layers, by file system.
	Usage(ctx context.Context) (images, layers []pod.Usage, err error)
}

// ImagePorter moves images between stores as OCI or docker-archive tars. It is asked for, not required.
type ImagePorter interface {
	Export(ctx context.Context, id string, w io.Writer) error
	Import(ctx context.Context, r io.Reader) (ids []string, err error)
}

// Viewer is an optional power of an image store.
type Viewer interface {
	// View shows the root file system of an image as a directory on this node, which use must not
	// change and which is gone after the call.
	View(ctx context.Context, id string, use func(dir string) error) error
}

// Dialer is an optional power: connections into a sandbox that is not a network namespace.
type Dialer interface {
	Dial(ctx context.Context, key pod.Key, port int32) (io.ReadWriteCloser, error)
}

// LogReopener is an optional power: opening a container's log anew after it was renamed away, where
// the keeper does not write it.
type LogReopener interface {
	ReopenLog(ctx context.Context, key pod.Key) error
}

// Stater is an optional power: statistics of a container that has no cgroup on the node.
type Stater interface {
	Stats(ctx context.Context, key pod.Key) (*pod.Stats, error)
}

// Heir is an optional power: pods that another runtime of Kubernetes has left where the engine keeps
// its own.
type Heir interface {
	// Foreign returns what was left and not taken over, as its labels tell it, in the state that it has.
	// The key of each is its id.
	Foreign(ctx context.Context) ([]*pod.Sandbox, []*pod.Container, error)
	// TakeOver makes what Foreign gave under the keys the engine's own until it is removed: all other
	// calls but Start then know it. It is repeated after every start.
	TakeOver(keys ...pod.Key)
}

// Pauser is an optional power: containers that do not run for a while.
type Pauser interface {
	// Pause freezes all processes of a running container; one that is paused is no error.
	Pause(ctx context.Context, key pod.Key) error
	// Resume lets them go on. It first waits for a capture of the container that a crash may have left
	// under way. What is not paused, or has ended, is no error.
	Resume(ctx context.Context, key pod.Key) error
}

// Checkpointer is an optional power: containers written to the disk, to be made again from there by
// CreateContainer with Restore. An engine that has it is a Pauser too.
type Checkpointer interface {
	// CanCheckpoint says, before anything is done, why containers of a runtime handler can be neither
	// checkpointed nor restored on this node: ErrFailedPrecondition naming what is missing.
	CanCheckpoint(ctx context.Context, handler string) error
	// Checkpoint writes the state of a running container to the directory, which is empty: its
	// processes, what its root file system changed and what it was started with, under the names of
	// package checkpoint. The container is as it was afterwards, paused if it was paused. When ctx ends
	// nothing works on the directory any more when the call returns.
	Checkpoint(ctx context.Context, key pod.Key, dir string) error
}
