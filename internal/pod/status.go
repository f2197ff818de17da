package pod

// ExecResult is what running a process to its end, with bounded output, saw.
type ExecResult struct {
	Stdout    []byte
	Stderr    []byte
	ExitCode  int32
	Discarded int64 // bytes beyond the bound
}

// NodeStatus is what was checked just now. A nil error means ready.
type NodeStatus struct {
	Runtime       error
	Network       error
	Handlers      []string // "" is the default one
	SystemdCgroup bool
	Verbose       map[string]string
}
