// Package keeper is the server's side of gantry-keeper: it finds or starts the node's keeper and
// asks it to create, start, signal and delete containers, to run processes in them, and to tell
// how they ended. The keeper itself (holder and worker) lives in the packages below this one, which
// import the standard library and golang.org/x/sys only.
package keeper

import (
	"os"
	"time"
)

// Runtime is the OCI runtime of one container, remembered by the keeper for the container's life,
// so that a changed configuration never orphans what runs.
type Runtime struct {
	Path string   // the binary
	Args []string // global arguments before the command, such as --root DIR or --systemd-cgroup
}

// Create asks for a container: FIFOs or a terminal, the log, then the runtime's create.
type Create struct {
	Key        string // also the id given to the OCI runtime
	Runtime    Runtime
	Bundle     string // directory with config.json and the mounted root file system
	LogPath    string // absolute; "" reads output and drops it
	CgroupPath string // below the cgroup mount, watched for OOM kills
	Stdin      bool
	StdinOnce  bool // the first attach that ends closes stdin
	TTY        bool
}

// Exec asks for a further process in a running container. The descriptors are handed to the
// process itself (no copying on the way); the caller closes its own after the call. With TTY they
// are nil and Session.Console is the terminal's master.
type Exec struct {
	Key     string
	Process []byte // OCI process, JSON
	TTY     bool
	Stdin   *os.File
	Stdout  *os.File
	Stderr  *os.File
}

// Attach asks for the container's own streams. The worker writes output to Stdout and Stderr and
// closes them when the container has ended or the client is too slow; a slow client never delays the log.
// Input: Session.Stdin, where the container has one, is the write end (or the terminal's master).
type Attach struct {
	Key    string
	Stdout *os.File
	Stderr *os.File
}

// Exit is how a process ended.
type Exit struct {
	Code      int32 // 128+n for signal n
	At        time.Time
	OOMKilled bool
	Unknown   bool // nobody saw it; Code is 255
}

// State is a container as the keeper sees it.
type State struct {
	Key        string
	Phase      string // "creating", "created", "running", "exited"
	Pid        int
	Bundle     string
	CgroupPath string
	Exit       *Exit
}

// Event is an exit, or an OOM kill that the container survived (Exit nil).
type Event struct {
	Key  string
	Exit *Exit
}
