// Package keeper is the server's side of gantry-keeper: it finds or starts the node's keeper and
// asks it to create, start, signal and delete containers, to run processes in them, and to tell
// how they ended. The keeper itself (holder and worker) lives in the packages below this one, which
// import the standard library and golang.org/x/sys only.
package keeper

import "gantry/internal/keeper/wire"

// The nouns of the API are those of the wire, where the keeper's own processes use them too.
type (
	// Runtime is the OCI runtime of one container, remembered by the keeper for the container's life,
	// so that a changed configuration never orphans what runs. Path is the binary, Args are global
	// arguments before the command, such as --root DIR or --systemd-cgroup.
	Runtime = wire.Runtime

	// Create asks for a container: FIFOs or a terminal, the log, then the runtime's create.
	Create = wire.Create

	// Exec asks for a further process in a running container. The descriptors are handed to the
	// process itself (no copying on the way); the caller closes its own after the call. With TTY they
	// are nil and Session.Console is the terminal's master.
	Exec = wire.Exec

	// Attach asks for the container's own streams. The worker writes output to Stdout and Stderr and
	// closes them when the container has ended or the client is too slow; a slow client never delays the log.
	// The caller closes its own after the call.
	// Input: Session.Stdin, where the container has one, is the write end (or the terminal's master).
	Attach = wire.Attach

	// Log asks for the log of a container that dockerd runs. The keeper serves Docker's LogDriver protocol
	// at Socket, so that output goes into the log while the server restarts, rotated and reopened like
	// that of the keeper's own containers.
	Log = wire.Log

	// LogBounds say when output is dropped instead of logged.
	LogBounds = wire.LogBounds

	// Exit is how a process ended.
	Exit = wire.Exit

	// State is a container as the keeper sees it.
	State = wire.State

	// Event is an exit, or an OOM kill that the container survived (Exit nil).
	Event = wire.Event
)

// LogKeyOption is the log option by which dockerd tells the keeper's log driver a container's key.
const LogKeyOption = wire.LogKeyOption
