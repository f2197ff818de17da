package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Op is an operation that changes what there is.
type Op string

// The operations that have points.
const (
	OpRunPod          Op = "RunPod"
	OpUndoPod         Op = "UndoPod" // the walk back of a RunPod that failed, or was found half done
	OpStopPod         Op = "StopPod"
	OpRemovePod       Op = "RemovePod"
	OpCreateContainer Op = "CreateContainer"
	OpUndoContainer   Op = "UndoContainer"
	OpStartContainer  Op = "StartContainer"
	OpStopContainer   Op = "StopContainer"
	OpRemoveContainer Op = "RemoveContainer"
	OpRecover         Op = "Recover"
	OpCheckpoint      Op = "Checkpoint" // of one container or of several
	OpRestorePod      Op = "RestorePod" // what comes after the sandbox
)

// Point is a moment after which a crash must lose nothing: a step of an operation was done, or the
// journal was written.
type Point struct {
	Op   Op
	Step string
}

func (p Point) String() string { return string(p.Op) + "/" + p.Step }

// The names of points beside those of the steps.
const (
	pointIntent  = "intent"  // the journal says what is about to happen
	pointStarted = "started" // the engine started it
	pointSignal  = "signal"  // the stop signal was sent
	pointKill    = "kill"    // SIGKILL was sent and the exit seen
	pointRecord  = "record"  // the journal says what has happened
	pointForget  = "forget"  // the record is gone

	pointPaused    = "paused"    // no selected container runs
	pointCaptured  = "captured"  // all of them are on the disk
	pointResumed   = "resumed"   // all of them run again
	pointPublished = "published" // the checkpoint has the name that the client gave
	pointContainer = "container" // one more container of the checkpoint is created
)

// The parts of Recover.
const (
	pointJournal = "journal" // memory is what the journal says
	pointEngines = "engines" // and what the engines have
	pointFinish  = "finish"  // what was half made or half undone is undone
	pointCollect = "collect" // what nobody knows of is removed
)

// step is one entry of the list that makes a thing: do makes, stop ends what uses resources, remove
// takes away what stop left. Each may be nil. Stop and remove are safe when do never ran, or ran in part.
type step[T any] struct {
	name   string
	do     func(ctx context.Context, t T) error
	stop   func(ctx context.Context, t T) error
	remove func(ctx context.Context, t T) error
	// bars says that undoing the step needs what the steps before it made: as long as it cannot be
	// undone, they stay.
	bars bool
}

// The names of a pod's and of a container's steps.
const (
	stepFiles   = "files"
	stepSandbox = "sandbox create"
	stepNetwork = "network attach"
	stepStart   = "sandbox start"
	stepPlugins = "plugins"
	stepPublish = "publish"
	stepUnpack  = "checkpoint unpack"
	stepCreate  = "container create"

	// stepRun is what a container is at while it is being started.
	stepRun = "container start"

	// stopped is the step of a sandbox that has been walked back as far as StopPod goes.
	stopped = "stopped"

	// stepTakenOver is the step of a sandbox of an earlier runtime: it is not ready and was not stopped.
	stepTakenOver = "taken over"
)

// podSteps is the life of a pod. RunPod walks it forwards; StopPod, RemovePod, recovery and the
// undoing of a failure walk it backwards. With Docker the network namespace belongs to the pause
// container: that is why the network is attached after create and detached before its stop. A plugin
// that is called without the namespace, because an earlier DEL failed, cannot find what to give back.
func (m *Manager) podSteps() []step[*podEntry] {
	return []step[*podEntry]{
		{name: stepFiles, do: m.writeFiles, remove: m.removeFiles},
		{name: stepSandbox, do: m.createSandbox, stop: m.stopSandbox, remove: m.removeSandbox},
		{name: stepNetwork, do: m.attach, stop: m.detach, bars: true},
		{name: stepStart, do: m.startSandbox},
		{name: stepPlugins, do: m.tellRun, stop: m.tellStopped, remove: m.tellRemoved},
		{name: stepPublish, do: m.publishPod, stop: m.killContainers, remove: m.removeContainers},
	}
}

// containerSteps is the way to a container that can be started.
func (m *Manager) containerSteps() []step[*containerEntry] {
	return []step[*containerEntry]{
		{name: stepUnpack, do: m.unpackCheckpoint, remove: m.removeCheckpoint},
		{name: stepPlugins, do: m.adjust, remove: m.tellContainerRemoved},
		{name: stepCreate, do: m.engineCreate, remove: m.engineRemove},
		{name: stepPublish, do: m.publishContainer},
	}
}

// Points lists every point there is, so that a test which crashes at each of them covers a new step
// the day it is added.
func Points() []Point {
	var m *Manager // only the names are read
	var pods, containers []string
	for _, s := range m.podSteps() {
		pods = append(pods, s.name)
	}
	for _, s := range m.containerSteps() {
		containers = append(containers, s.name)
	}
	var all []Point
	add := func(op Op, steps ...string) {
		for _, s := range steps {
			all = append(all, Point{op, s})
		}
	}
	add(OpRunPod, pointIntent)
	add(OpRunPod, pods...)
	add(OpUndoPod, pods...)
	add(OpStopPod, pointIntent)
	add(OpStopPod, pods...)
	add(OpStopPod, pointRecord)
	add(OpRemovePod, pointIntent)
	add(OpRemovePod, pods...)
	add(OpRemovePod, pointForget)
	add(OpCreateContainer, pointIntent)
	add(OpCreateContainer, containers...)
	add(OpUndoContainer, containers...)
	add(OpStartContainer, pointStarted, pointRecord)
	add(OpStopContainer, pointSignal, pointKill)
	add(OpRemoveContainer, pointIntent)
	add(OpRemoveContainer, containers...)
	add(OpRemoveContainer, pointForget)
	add(OpCheckpoint, pointIntent, pointPaused, pointCaptured, pointResumed, pointPublished, pointRecord)
	add(OpRestorePod, pointContainer, pointRecord)
	return all
}

// RecoveryPoints lists the points of Recover itself, which every start reaches.
func RecoveryPoints() []Point {
	var all []Point
	for _, part := range []string{pointJournal, pointEngines, pointFinish, pointCollect} {
		all = append(all, Point{OpRecover, part})
	}
	return all
}

func (m *Manager) reached(op Op, name string) error {
	if m.opts.Hook == nil {
		return nil
	}
	return m.opts.Hook(Point{op, name})
}

// trace begins a step's span where somebody wants to know.
func (m *Manager) trace(ctx context.Context, step string) (own context.Context, end func(error)) {
	if m.opts.Trace == nil {
		return ctx, func(error) {}
	}
	return m.opts.Trace(ctx, step)
}

// walker is what steps make: it knows at which of them it is.
type walker interface {
	begin(step string)
	rest()
}

// forward does the steps in order and stops at the first that fails.
func forward[T walker](ctx context.Context, m *Manager, op Op, steps []step[T], t T) error {
	defer t.rest()
	for _, s := range steps {
		t.begin(s.name)
		own, end := m.trace(ctx, s.name)
		err := s.do(own, t)
		end(err)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		if err = m.reached(op, s.name); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

// backward undoes all steps in reverse, each within the time that a step of undoing may take; only
// StopPod leaves what remove takes away. It stops at no error but that of a step that bars the way:
// what can be given back is given back.
func backward[T walker](ctx context.Context, m *Manager, op Op, steps []step[T], t T) error {
	defer t.rest()
	var errs []error
	for _, s := range slices.Backward(steps) {
		t.begin(s.name)
		own, end := m.trace(ctx, "undo "+s.name)
		err := s.undo(own, m.times.Undo, t, op != OpStopPod)
		end(err)
		if err == nil {
			err = m.reached(op, s.name)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("undo %s: %w", s.name, err))
			if s.bars {
				break
			}
		}
	}
	return errors.Join(errs...)
}

func (s step[T]) undo(ctx context.Context, limit time.Duration, t T, remove bool) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var errs []error
	if s.stop != nil {
		errs = append(errs, s.stop(ctx, t))
	}
	if s.remove != nil && remove {
		errs = append(errs, s.remove(ctx, t))
	}
	return errors.Join(errs...)
}
