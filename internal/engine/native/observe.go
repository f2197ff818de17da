package native

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"gantry/internal/engine"
	"gantry/internal/keeper"
	"gantry/internal/pod"
)

// Phases of a container in the keeper; see keeper.State.
const (
	phaseCreating = "creating"
	phaseCreated  = "created"
	phaseRunning  = "running"
	phaseExited   = "exited"
)

// List merges what the keeper has with what is on the disk, so that what was half made shows.
func (e *Engine) List(ctx context.Context) (engine.Inventory, error) {
	states, err := e.opts.Keeper.List(ctx)
	if err != nil {
		return engine.Inventory{}, fmt.Errorf("list containers: %w", err)
	}
	containers, err := e.listContainers(ctx, states)
	if err != nil {
		return engine.Inventory{}, err
	}
	sandboxes, err := e.listSandboxes(states)
	return engine.Inventory{Sandboxes: sandboxes, Containers: containers}, err
}

func (e *Engine) listContainers(ctx context.Context, states []keeper.State) ([]engine.ContainerInfo, error) {
	var all []engine.ContainerInfo
	listed := make(map[pod.Key]bool)
	for i := range states {
		if !strings.HasSuffix(states[i].Key, pauseSuffix) {
			info := containerInfo(&states[i])
			all = append(all, info)
			listed[info.Key] = true
		}
	}
	onDisk, err := keys(e.containerDir(""))
	if err != nil {
		return nil, err
	}
	prepared, err := e.opts.Rootfs.Prepared(ctx)
	if err != nil {
		return nil, err
	}
	for _, key := range prepared {
		onDisk = append(onDisk, volumeOwner(key))
	}
	for _, key := range onDisk {
		if !listed[key] {
			all = append(all, engine.ContainerInfo{Key: key, ID: string(key), State: pod.ContainerCreating})
			listed[key] = true
		}
	}
	return all, nil
}

func containerInfo(s *keeper.State) engine.ContainerInfo {
	info := engine.ContainerInfo{Key: pod.Key(s.Key), ID: s.Key, Pid: s.Pid, CgroupPath: s.CgroupPath, LogDropped: s.LogDropped}
	switch s.Phase {
	case phaseCreated:
		info.State = pod.ContainerCreated
	case phaseRunning:
		info.State = pod.ContainerRunning
	case phaseExited:
		info.State, info.Pid = pod.ContainerExited, 0
		info.Exit = podExit(s.Exit)
	default:
		info.State = pod.ContainerCreating
	}
	return info
}

func (e *Engine) listSandboxes(states []keeper.State) ([]engine.SandboxInfo, error) {
	onDisk, err := keys(e.sandboxDir(""))
	if err != nil {
		return nil, err
	}
	all := make([]engine.SandboxInfo, 0, len(onDisk))
	for _, key := range onDisk {
		info := engine.SandboxInfo{Key: key, ID: string(key)}
		if r, err := e.readSandbox(key); err == nil {
			info.NetNS = r.Namespaces.Net
			info.Ready = e.whole(key, r) && (!r.Pause || pauseRuns(states, key))
		}
		all = append(all, info)
	}
	return all, nil
}

// Watch delivers what the keeper tells. Containers that ended before are told once, at the beginning:
// the caller may have seen them run.
func (e *Engine) Watch(ctx context.Context) (<-chan engine.Event, error) {
	ctx, cancel := context.WithCancel(ctx)
	source, err := e.opts.Keeper.Watch(ctx)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("watch containers: %w", err)
	}
	states, err := e.opts.Keeper.List(ctx)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("watch containers: %w", err)
	}
	out := make(chan engine.Event)
	go func() {
		defer close(out)
		defer cancel()
		forward(ctx, source, out, ended(states))
	}()
	return out, nil
}

func ended(states []keeper.State) []keeper.Event {
	var all []keeper.Event
	for _, s := range states {
		if s.Phase == phaseExited && s.Exit != nil {
			all = append(all, keeper.Event{Key: s.Key, Exit: s.Exit})
		}
	}
	return all
}

// forward sends first what is in before, then what comes from source, but no exit twice. The end of
// a pause process is the end of its sandbox.
func forward(ctx context.Context, source <-chan keeper.Event, out chan<- engine.Event, before []keeper.Event) {
	send := func(ev keeper.Event) bool {
		key, pause := strings.CutSuffix(ev.Key, pauseSuffix)
		if pause && ev.Exit == nil {
			return true
		}
		select {
		case out <- engine.Event{Key: pod.Key(key), Exit: podExit(ev.Exit), LogDropped: ev.LogDropped}:
			return true
		case <-ctx.Done():
			return false
		}
	}
	for _, ev := range before {
		if !send(ev) {
			return
		}
	}
	for {
		select {
		case ev, ok := <-source:
			if !ok {
				return
			}
			if i := slices.IndexFunc(before, func(b keeper.Event) bool { return b.Key == ev.Key }); i >= 0 && ev.Exit != nil {
				before = slices.Delete(before, i, i+1)
				continue
			}
			if !send(ev) {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

func podExit(x *keeper.Exit) *pod.Exit {
	if x == nil {
		return nil
	}
	return &pod.Exit{Code: x.Code, At: x.At, OOMKilled: x.OOMKilled, Unknown: x.Unknown}
}
