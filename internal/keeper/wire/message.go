package wire

import (
	"encoding/json"
	"errors"
	"fmt"
	"syscall"
)

// Operations a client asks the worker for.
const (
	OpPing     = "ping"
	OpCreate   = "create"   // Create → Pid
	OpStart    = "start"    // Target
	OpSignal   = "signal"   // Target
	OpDelete   = "delete"   // Target
	OpReopen   = "reopen"   // Target
	OpList     = "list"     // → []State
	OpWatch    = "watch"    // → Event frames until the connection ends
	OpExec     = "exec"     // ExecRequest, files → Pid, the terminal; later OpEnd with Exit
	OpExecWait = "execwait" // Target (the exec's id) → Pid; later OpEnd with Exit
	OpLog      = "log"      // Log
	OpUnlog    = "unlog"    // Target
	OpAttach   = "attach"   // AttachRequest, files → stdin where there is one; later OpEnd with Exit
)

// Frames the worker sends by itself.
const (
	OpEvent = "event" // Event
	OpEnd   = "end"   // Exit, or an error
)

// Messages between worker and holder. None is answered: the socket is ordered and outlives its sender.
const (
	OpHold  = "hold"  // worker: Names, files: keep these, replacing what has the name
	OpDrop  = "drop"  // worker: Names: close these
	OpClaim = "claim" // worker: Claim, perhaps a pidfd: tell how this process ends
	OpHeld  = "held"  // holder: Names, files: what is kept for you
	OpReady = "ready" // holder: that was all
	OpExit  = "exit"  // holder: Ended
	OpBeat  = "beat"  // holder: answer with the same; worker: it hears, or the answer
)

// Target names a container or an exec, and what some operations need besides.
type Target struct {
	Key    string `json:"key"`
	Signal int    `json:"signal,omitempty"`
	All    bool   `json:"all,omitempty"` // every process of the container's cgroup
}

// Pid answers a create or an exec.
type Pid struct {
	Pid int `json:"pid"`
}

// ExecRequest is an Exec with the id under which a client asks for it again after a worker's death.
// Stdio are the process's streams that have a file with the frame, in the order of the files.
type ExecRequest struct {
	Exec
	ID    string `json:"execID"`
	Stdio []int  `json:"stdio,omitempty"`
}

// AttachRequest is an Attach; Stdio are 1 and 2 as far as they have a file with the frame, in order.
type AttachRequest struct {
	Attach
	Stdio []int `json:"stdio,omitempty"`
}

// Names are the names of the files that travel with the frame.
type Names struct {
	Names []string `json:"names"`
}

// Claim says whose process a pid is and in which directory its exit is recorded. Key is a
// container's key, or "exec/" and an exec's id.
type Claim struct {
	Key string `json:"key"`
	Pid int    `json:"pid"`
	Dir string `json:"dir"`
}

// Ended tells the worker of an exit that is on record in the claim's directory.
type Ended struct {
	Key  string `json:"key"`
	Pid  int    `json:"pid"`
	Exit Exit   `json:"exit"`
}

// ExitFile is the name of an exit record in a claim's directory: an Exit in JSON.
const ExitFile = "exit.json"

// Error codes. They name the classes of containerd/errdefs.
const (
	CodeNotFound     = "not-found"
	CodeInvalid      = "invalid-argument"
	CodePrecondition = "failed-precondition"
	CodeUnavailable  = "unavailable"
	CodeDeadline     = "deadline-exceeded"
	CodeAborted      = "aborted"
	CodeExhausted    = "resource-exhausted" // of a disk
	CodeUnknown      = "unknown"
)

// Error is an error with its class.
type Error struct {
	Code string
	Text string
}

func (e *Error) Error() string { return e.Text }

// Errorf makes an Error.
func Errorf(code, format string, args ...any) error {
	return &Error{Code: code, Text: fmt.Sprintf(format, args...)}
}

// Reply makes the answer to the frame with that id: body, or err with its class.
func Reply(id uint64, body any, err error) (*Frame, error) {
	f := &Frame{ID: id}
	if err != nil {
		f.SetError(err)
		return f, nil
	}
	return f, f.SetBody(body)
}

// SetError puts err and its class into the frame.
func (f *Frame) SetError(err error) {
	var classed *Error
	f.Error, f.Code = err.Error(), CodeUnknown
	switch {
	case errors.As(err, &classed):
		f.Code = classed.Code
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		f.Code = CodeExhausted
	case errors.Is(err, syscall.EROFS), errors.Is(err, syscall.EIO):
		f.Code = CodeUnavailable
	}
}

// SetBody puts v into the frame; nil leaves it without a body.
func (f *Frame) SetBody(v any) error {
	if v == nil {
		return nil
	}
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", f.Op, err)
	}
	f.Body = b
	return nil
}

// Err returns the frame's error, nil if it carries none.
func (f *Frame) Err() error {
	if f.Code == "" {
		return nil
	}
	return &Error{Code: f.Code, Text: f.Error}
}

// Into decodes the frame's body.
func (f *Frame) Into(v any) error {
	if err := json.Unmarshal(f.Body, v); err != nil {
		return Errorf(CodeInvalid, "decode %s: %v", f.Op, err)
	}
	return nil
}
