package wire

import (
	"os"
	"time"
)

// Runtime is the OCI runtime of one container; see keeper.Runtime.
type Runtime struct {
	Path string   `json:"path"`           // the binary
	Args []string `json:"args,omitempty"` // global arguments before the command
	// Clones says that it executes itself once more, from a file that nobody can write to, where it does not run from one.
	Clones bool `json:"clones,omitempty"`
}

// Create asks for a container; see keeper.Create.
type Create struct {
	Key     string  `json:"key"` // also the id given to the OCI runtime
	Runtime Runtime `json:"runtime"`
	Bundle  string  `json:"bundle"` // directory with config.json and the mounted root file system
	// LogPath is absolute; "" reads output and drops it. No link is followed behind "/./" in it.
	LogPath    string `json:"logPath,omitempty"`
	CgroupPath string `json:"cgroupPath,omitempty"` // below the cgroup mount, watched for OOM kills
	Stdin      bool   `json:"stdin,omitempty"`
	StdinOnce  bool   `json:"stdinOnce,omitempty"` // the first attach that ends closes stdin
	TTY        bool   `json:"tty,omitempty"`
	// Restore is a directory with a checkpoint's processes, as CRIU wrote them: Start has the runtime
	// restore them, and until then there is no process. It may go once Start has returned.
	Restore string `json:"restore,omitempty"`
	// Bounds are those of the container's log.
	Bounds LogBounds `json:"bounds,omitzero"`
	// DirectStart and DirectDelete say that all that Runtime would do then is what the keeper can do without
	// its process: write to the FIFO of its record of the container; remove processes, cgroup and record.
	DirectStart  bool `json:"directStart,omitempty"`
	DirectDelete bool `json:"directDelete,omitempty"`
}

// LogBounds say when output is dropped instead of logged. Zero is no bound.
type LogBounds struct {
	Rate     int64         `json:"rate,omitempty"`     // bytes of output a second, on average
	Size     int64         `json:"size,omitempty"`     // bytes of the log file; a rotation begins a new one
	FullWait time.Duration `json:"fullWait,omitempty"` // how long output waits for a disk that can't be written; 0 is for ever
}

// Exec asks for a further process in a container; see keeper.Exec. The files travel beside the frame.
type Exec struct {
	Key     string   `json:"key"`
	Process []byte   `json:"process"` // OCI process, JSON
	TTY     bool     `json:"tty,omitempty"`
	Stdin   *os.File `json:"-"`
	Stdout  *os.File `json:"-"`
	Stderr  *os.File `json:"-"`
}

// Attach asks for a container's streams; see keeper.Attach. The files travel beside the frame.
type Attach struct {
	Key    string   `json:"key"`
	Stdout *os.File `json:"-"`
	Stderr *os.File `json:"-"`
}

// Log asks for the log of a container that dockerd runs; see keeper.Log.
type Log struct {
	Key     string `json:"key"`
	LogPath string `json:"logPath,omitempty"` // absolute; "" reads output and drops it
	Socket  string `json:"socket"`            // absolute; where dockerd finds the log driver
	// Bounds are those of the log.
	Bounds LogBounds `json:"bounds,omitzero"`
}

// LogKeyOption is the log option by which dockerd tells the driver a container's key.
const LogKeyOption = "gantry-key"

// Exit is how a process ended; see keeper.Exit.
type Exit struct {
	Code      int32     `json:"code"` // 128+n for signal n
	At        time.Time `json:"at"`
	OOMKilled bool      `json:"oomKilled,omitempty"`
	Unknown   bool      `json:"unknown,omitempty"` // nobody saw it; Code is 255
}

// State is a container as the keeper sees it; see keeper.State.
type State struct {
	Key        string `json:"key"`
	Phase      string `json:"phase"` // "creating", "created", "running", "exited"
	Pid        int    `json:"pid,omitempty"`
	Bundle     string `json:"bundle"`
	CgroupPath string `json:"cgroupPath,omitempty"`
	Exit       *Exit  `json:"exit,omitempty"`
	// LogDropped is how many bytes of output are not in the log because of its bounds.
	LogDropped int64 `json:"logDropped,omitempty"`
}

// Event is an exit or an OOM kill; see keeper.Event.
type Event struct {
	Key  string `json:"key"`
	Exit *Exit  `json:"exit,omitempty"`
	// LogDropped, if not zero, is what State has now; such an event tells nothing else.
	LogDropped int64 `json:"logDropped,omitempty"`
}
