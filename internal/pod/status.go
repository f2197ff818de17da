package pod

// ExecResult is what running a process to its end, with bounded output, saw.
type ExecResult struct {
	Stdout    []byte
	Stderr    []byte
	ExitCode  int32
	Discarded int64 // bytes beyond the bound
}

// HandlerFeatures is what a runtime handler offers beyond the base (CRI RuntimeHandlerFeatures).
type HandlerFeatures struct {
	RecursiveReadOnlyMounts bool
	UserNamespaces          bool
}

// NodeStatus is what was checked just now. A nil error means ready.
type NodeStatus struct {
	Runtime error
	Network error
	// Configuration is why the server goes on with older options than its file now has; nil when it does not.
	Configuration error
	Handlers      []string // "" is the default one
	// Features tells, by handler, what it can do; a handler that is missing here has none of them.
	Features      map[string]HandlerFeatures
	SystemdCgroup bool
	Verbose       map[string]string
}
