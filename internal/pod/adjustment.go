package pod

import (
	"maps"
	"slices"
)

// Adjustment is what plugins (NRI) want changed in a container that is about to be created. What it
// names for removal goes first, then the rest is added, or replaces what has its name. The zero value
// changes nothing.
type Adjustment struct {
	Annotations Edit     `json:"annotations,omitzero"`
	Args        []string `json:"args,omitempty"` // the whole command, in place of the container's and the image's
	Env         []Var    `json:"env,omitempty"`
	RemoveEnv   []string `json:"removeEnv,omitempty"`
	// Mounts are made as they are: their type and options are those of an OCI runtime.
	Mounts       []MountPoint `json:"mounts,omitempty"`
	RemoveMounts []string     `json:"removeMounts,omitempty"` // by path in the container
	Hooks        Hooks        `json:"hooks,omitzero"`
	Rlimits      []Rlimit     `json:"rlimits,omitempty"`
	CDIDevices   []string     `json:"cdiDevices,omitempty"`
	Devices      []DeviceNode `json:"devices,omitempty"`
	// RemoveDevices are paths in the container.
	RemoveDevices []string        `json:"removeDevices,omitempty"`
	Resources     *Resources      `json:"resources,omitempty"` // OOMScoreAdj is not read
	OOMScoreAdj   *int64          `json:"oomScoreAdj,omitempty"`
	CgroupsPath   string          `json:"cgroupsPath,omitempty"` // in the form of the node's cgroup driver
	IOPriority    *IOPriority     `json:"ioPriority,omitempty"`
	Scheduler     *Scheduler      `json:"scheduler,omitempty"`
	Seccomp       *SeccompProgram `json:"seccomp,omitempty"`
	Namespaces    Edit            `json:"namespaces,omitzero"` // paths by OCI type; "" is a new one
	Sysctls       Edit            `json:"sysctls,omitzero"`
	NetDevices    Edit            `json:"netDevices,omitzero"` // names in the container by those on the node
	RDT           *RDT            `json:"rdt,omitempty"`
	MemoryPolicy  *MemoryPolicy   `json:"memoryPolicy,omitempty"`
}

// Edit changes named values.
type Edit struct {
	Set    map[string]string `json:"set,omitempty"`
	Remove []string          `json:"remove,omitempty"`
}

// Empty says whether e changes nothing.
func (e Edit) Empty() bool { return len(e.Set) == 0 && len(e.Remove) == 0 }

// Apply returns values as e changes them.
func (e Edit) Apply(values map[string]string) map[string]string {
	n := make(map[string]string, len(values)+len(e.Set))
	maps.Copy(n, values)
	for _, name := range e.Remove {
		delete(n, name)
	}
	maps.Copy(n, e.Set)
	return n
}

// MountPoint is a mount as mount(2) and OCI runtimes know it.
type MountPoint struct {
	Destination string   `json:"destination"`
	Type        string   `json:"type,omitempty"`
	Source      string   `json:"source,omitempty"`
	Options     []string `json:"options,omitempty"`
}

// Hooks are programs that the OCI runtime runs at moments of a container's life.
type Hooks struct {
	Prestart        []Hook `json:"prestart,omitempty"`
	CreateRuntime   []Hook `json:"createRuntime,omitempty"`
	CreateContainer []Hook `json:"createContainer,omitempty"`
	StartContainer  []Hook `json:"startContainer,omitempty"`
	Poststart       []Hook `json:"poststart,omitempty"`
	Poststop        []Hook `json:"poststop,omitempty"`
}

// Empty says whether there is no hook at all.
func (h *Hooks) Empty() bool {
	return len(h.Prestart)+len(h.CreateRuntime)+len(h.CreateContainer)+len(h.StartContainer)+len(h.Poststart)+len(h.Poststop) == 0
}

// Hook is one program.
type Hook struct {
	Path    string   `json:"path"`
	Args    []string `json:"args,omitempty"` // the first is the program's name
	Env     []string `json:"env,omitempty"`
	Timeout *int     `json:"timeout,omitempty"` // seconds
}

// Rlimit bounds a process (getrlimit(2)); Type is as in "RLIMIT_NOFILE".
type Rlimit struct {
	Type string `json:"type"`
	Hard uint64 `json:"hard"`
	Soft uint64 `json:"soft"`
}

// DeviceNode is a device as it is to be in the container, whatever the node has at its path.
type DeviceNode struct {
	Path  string  `json:"path"`
	Type  string  `json:"type"` // "c", "b", "u" or "p"
	Major int64   `json:"major,omitempty"`
	Minor int64   `json:"minor,omitempty"`
	Mode  *uint32 `json:"mode,omitempty"` // permission bits
	UID   *uint32 `json:"uid,omitempty"`
	GID   *uint32 `json:"gid,omitempty"`
}

// DeviceRule allows or forbids access to devices. A nil number is any.
type DeviceRule struct {
	Allow  bool   `json:"allow,omitempty"`
	Type   string `json:"type,omitempty"` // "c", "b", or "a" and "" for both
	Major  *int64 `json:"major,omitempty"`
	Minor  *int64 `json:"minor,omitempty"`
	Access string `json:"access,omitempty"` // subset of "rwm"
}

// IOPriority is an I/O scheduling class and level (ioprio_set(2)), with an empty class the node's.
type IOPriority struct {
	Class    string `json:"class,omitempty"` // as in "IOPRIO_CLASS_BE"
	Priority int    `json:"priority,omitempty"`
}

// Scheduler is a scheduling policy (sched_setattr(2)), with an empty policy the node's. Times are
// nanoseconds.
type Scheduler struct {
	Policy   string   `json:"policy,omitempty"` // as in "SCHED_FIFO"
	Nice     int32    `json:"nice,omitempty"`
	Priority int32    `json:"priority,omitempty"`
	Flags    []string `json:"flags,omitempty"` // as in "SCHED_FLAG_RESET_ON_FORK"
	Runtime  uint64   `json:"runtime,omitempty"`
	Deadline uint64   `json:"deadline,omitempty"`
	Period   uint64   `json:"period,omitempty"`
}

// SeccompProgram is a whole seccomp profile, in the words of libseccomp ("SCMP_ACT_ALLOW").
type SeccompProgram struct {
	DefaultAction    string        `json:"defaultAction"`
	DefaultErrno     *uint32       `json:"defaultErrno,omitempty"`
	Architectures    []string      `json:"architectures,omitempty"`
	Flags            []string      `json:"flags,omitempty"`
	ListenerPath     string        `json:"listenerPath,omitempty"`
	ListenerMetadata string        `json:"listenerMetadata,omitempty"`
	Syscalls         []SeccompRule `json:"syscalls,omitempty"`
}

// SeccompRule says what happens at system calls.
type SeccompRule struct {
	Names  []string     `json:"names"`
	Action string       `json:"action"`
	Errno  *uint32      `json:"errno,omitempty"`
	Args   []SeccompArg `json:"args,omitempty"`
}

// SeccompArg compares an argument of a system call.
type SeccompArg struct {
	Index    uint32 `json:"index"`
	Value    uint64 `json:"value"`
	ValueTwo uint64 `json:"valueTwo,omitempty"`
	Op       string `json:"op"` // as in "SCMP_CMP_EQ"
}

// RDT is a place in resctrl (Documentation/arch/x86/resctrl.rst). Nil leaves what there is.
type RDT struct {
	Remove     bool      `json:"remove,omitempty"` // whatever the container had
	ClosID     *string   `json:"closID,omitempty"`
	Schemata   *[]string `json:"schemata,omitempty"`
	Monitoring *bool     `json:"monitoring,omitempty"`
}

// MemoryPolicy says which NUMA nodes memory comes from (set_mempolicy(2)).
type MemoryPolicy struct {
	Mode  string   `json:"mode"` // as in "MPOL_BIND"
	Nodes string   `json:"nodes,omitempty"`
	Flags []string `json:"flags,omitempty"` // as in "MPOL_F_STATIC_NODES"
}

// Fold returns spec with everything of the adjustment that a spec can say, and what is left for the
// engine, which has to apply or refuse it; nil when nothing is left.
func (a *Adjustment) Fold(spec *ContainerSpec) (*ContainerSpec, *Adjustment) {
	s, left := *spec, *a
	if len(a.Args) > 0 {
		s.Command, s.Args, left.Args = a.Args, nil, nil
	}
	s.Env = slices.DeleteFunc(slices.Clone(spec.Env), func(v Var) bool { return slices.Contains(a.RemoveEnv, v.Name) })
	s.Env, left.Env = append(s.Env, a.Env...), nil
	s.CDIDevices, left.CDIDevices = append(slices.Clone(spec.CDIDevices), a.CDIDevices...), nil
	if a.Resources != nil {
		r := *a.Resources
		r.OOMScoreAdj = 0
		s.Resources, left.Resources = spec.Resources.With(&r), nil
	}
	if a.OOMScoreAdj != nil {
		s.Resources.OOMScoreAdj, left.OOMScoreAdj = *a.OOMScoreAdj, nil
	}
	// The image may set what the client does not: a variable that is set again need not be removed there.
	left.RemoveEnv = slices.DeleteFunc(slices.Clone(a.RemoveEnv), func(name string) bool {
		return slices.ContainsFunc(s.Env, func(v Var) bool { return v.Name == name })
	})
	if len(left.Fields()) == 0 {
		return &s, nil
	}
	return &s, &left
}

// Fields names what the adjustment changes, as NRI's protocol calls it, sorted: for whoever has to
// refuse what it cannot express.
func (a *Adjustment) Fields() []string {
	var names []string
	for name, set := range map[string]bool{
		"annotations":          !a.Annotations.Empty(),
		"args":                 len(a.Args) > 0,
		"env":                  len(a.Env)+len(a.RemoveEnv) > 0,
		"mounts":               len(a.Mounts)+len(a.RemoveMounts) > 0,
		"hooks":                !a.Hooks.Empty(),
		"rlimits":              len(a.Rlimits) > 0,
		"CDI_devices":          len(a.CDIDevices) > 0,
		"linux.devices":        len(a.Devices)+len(a.RemoveDevices) > 0,
		"linux.resources":      a.Resources != nil,
		"linux.oom_score_adj":  a.OOMScoreAdj != nil,
		"linux.cgroups_path":   a.CgroupsPath != "",
		"linux.io_priority":    a.IOPriority != nil,
		"linux.scheduler":      a.Scheduler != nil,
		"linux.seccomp_policy": a.Seccomp != nil,
		"linux.namespaces":     !a.Namespaces.Empty(),
		"linux.sysctl":         !a.Sysctls.Empty(),
		"linux.net_devices":    !a.NetDevices.Empty(),
		"linux.rdt":            a.RDT != nil,
		"linux.memory_policy":  a.MemoryPolicy != nil,
	} {
		if set {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}
