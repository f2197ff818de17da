package pod

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"strconv"
	"time"
)

// ContainerSpec is what the client asked for. It never changes after CreateContainer accepted it,
// but for Resources, which UpdateContainerResources replaces.
type ContainerSpec struct {
	Key     Key    `json:"key"`
	Sandbox Key    `json:"sandbox"`
	Name    string `json:"name"`
	Attempt uint32 `json:"attempt,omitempty"`
	// ImageID is the store's id of the image; ImageName is what the user wrote in the pod.
	ImageID    string            `json:"imageID"`
	ImageName  string            `json:"imageName,omitempty"`
	Command    []string          `json:"command,omitempty"` // replaces the image's entrypoint
	Args       []string          `json:"args,omitempty"`    // replaces the image's cmd
	WorkingDir string            `json:"workingDir,omitempty"`
	Env        []Var             `json:"env,omitempty"`
	Mounts     []Mount           `json:"mounts,omitempty"`
	Devices    []Device          `json:"devices,omitempty"`
	CDIDevices []string          `json:"cdiDevices,omitempty"`
	Labels     map[string]string `json:"labels,omitempty"`
	// Annotations as the kubelet gave them; no state is kept in them.
	Annotations map[string]string `json:"annotations,omitempty"`
	LogPath     string            `json:"logPath,omitempty"` // absolute; "" when nothing is to be logged
	LogName     string            `json:"logName,omitempty"` // as given, relative to the sandbox's log directory
	Stdin       bool              `json:"stdin,omitempty"`
	StdinOnce   bool              `json:"stdinOnce,omitempty"`
	TTY         bool              `json:"tty,omitempty"`
	Resources   Resources         `json:"resources"`
	Namespaces  Namespaces        `json:"namespaces"`
	Security    Security          `json:"security"`
	// LogBounds are those of the container's log; nil is none.
	LogBounds  *LogBounds `json:"logBounds,omitempty"`
	StopSignal string     `json:"stopSignal,omitempty"` // "SIGUSR1"; "" is the image's, else SIGTERM
}

// LogBounds say when output is dropped, whole lines of it, instead of logged. Zero is no bound.
type LogBounds struct {
	Rate     int64         `json:"rate,omitempty"`     // bytes of output a second, on average
	Size     int64         `json:"size,omitempty"`     // bytes of the log file; a rotation begins a new one
	FullWait time.Duration `json:"fullWait,omitempty"` // how long output waits for a disk that can't be written; 0 is for ever
}

// CommandLine joins as Kubernetes does: Command replaces entrypoint and cmd, Args replaces cmd alone.
func (s *ContainerSpec) CommandLine(image *ImageConfig) []string {
	entrypoint, args := s.Command, s.Args
	if len(entrypoint) == 0 {
		entrypoint = image.Entrypoint
		if len(args) == 0 {
			args = image.Cmd
		}
	}
	return slices.Concat(entrypoint, args)
}

// Var is one environment variable. Order matters: the last of a name wins.
type Var struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Propagation of a mount (CRI MountPropagation).
type Propagation string

// The mount propagations of the CRI.
const (
	PropagationPrivate         Propagation = "private"
	PropagationHostToContainer Propagation = "rslave"
	PropagationBidirectional   Propagation = "rshared"
)

// Mount is a bind mount of HostPath, or of an image when Image is not empty.
type Mount struct {
	ContainerPath     string      `json:"containerPath"`
	HostPath          string      `json:"hostPath,omitempty"`
	Image             string      `json:"image,omitempty"`
	ImageSubPath      string      `json:"imageSubPath,omitempty"`
	Propagation       Propagation `json:"propagation,omitempty"`
	Options           []string    `json:"options,omitempty"` // CRI mount_options
	UIDs              []IDMapping `json:"uids,omitempty"`
	GIDs              []IDMapping `json:"gids,omitempty"`
	ReadOnly          bool        `json:"readOnly,omitempty"`
	RecursiveReadOnly bool        `json:"recursiveReadOnly,omitempty"`
	SELinuxRelabel    bool        `json:"selinuxRelabel,omitempty"`
}

// Device passes a node's device; Permissions is a subset of "rwm".
type Device struct {
	ContainerPath string `json:"containerPath"`
	HostPath      string `json:"hostPath"`
	Permissions   string `json:"permissions"`
}

// Resources are a container's limits (CRI LinuxContainerResources). Zero means "not set" for every
// number but OOMScoreAdj and MemorySwapLimit's -1 (unlimited).
type Resources struct {
	CPUPeriod       int64             `json:"cpuPeriod,omitempty"`       // µs
	CPUQuota        int64             `json:"cpuQuota,omitempty"`        // µs a period; <0 unlimited
	CPUShares       int64             `json:"cpuShares,omitempty"`       // v1 shares, 2..262144
	MemoryLimit     int64             `json:"memoryLimit,omitempty"`     // bytes
	MemorySwapLimit int64             `json:"memorySwapLimit,omitempty"` // bytes, memory + swap
	OOMScoreAdj     int64             `json:"oomScoreAdj,omitempty"`
	CPUSetCPUs      string            `json:"cpusetCPUs,omitempty"`
	CPUSetMems      string            `json:"cpusetMems,omitempty"`
	HugepageLimits  []HugepageLimit   `json:"hugepageLimits,omitempty"`
	Unified         map[string]string `json:"unified,omitempty"`
	// Extra is what the CRI has no field for and plugins may set.
	Extra ExtraResources `json:"extra,omitzero"`
}

// With returns r changed by what u sets: the kubelet's updates may name only what changes. A zero
// OOMScoreAdj does not change anything either.
func (r Resources) With(u *Resources) Resources {
	r.CPUPeriod = cmp.Or(u.CPUPeriod, r.CPUPeriod)
	r.CPUQuota = cmp.Or(u.CPUQuota, r.CPUQuota)
	r.CPUShares = cmp.Or(u.CPUShares, r.CPUShares)
	r.MemoryLimit = cmp.Or(u.MemoryLimit, r.MemoryLimit)
	r.MemorySwapLimit = cmp.Or(u.MemorySwapLimit, r.MemorySwapLimit)
	r.OOMScoreAdj = cmp.Or(u.OOMScoreAdj, r.OOMScoreAdj)
	r.CPUSetCPUs = cmp.Or(u.CPUSetCPUs, r.CPUSetCPUs)
	r.CPUSetMems = cmp.Or(u.CPUSetMems, r.CPUSetMems)
	pages := slices.Clone(u.HugepageLimits)
	for _, old := range r.HugepageLimits {
		if !slices.ContainsFunc(pages, func(h HugepageLimit) bool { return h.PageSize == old.PageSize }) {
			pages = append(pages, old)
		}
	}
	r.HugepageLimits = pages
	if len(u.Unified) > 0 {
		unified := maps.Clone(u.Unified)
		for file, value := range r.Unified {
			if _, ok := unified[file]; !ok {
				unified[file] = value
			}
		}
		r.Unified = unified
	}
	r.Extra = r.Extra.with(&u.Extra)
	return r
}

// MemorySwapMax is the file of cgroup v2 that bounds swap alone, by which the kubelet says what swap a container may have.
const MemorySwapMax = "memory.swap.max"

// SwapBound is what memory and swap are bounded to together, in bytes, as OCI runtimes and Docker have it: -1 is unlimited,
// 0 where nothing is said. A memory limit alone leaves no swap beyond it. MemorySwapMax wins, which file tells; without a
// memory limit it can't be said in this way.
func (r *Resources) SwapBound() (bytes int64, file bool) {
	text := r.Unified[MemorySwapMax]
	swap, err := strconv.ParseInt(text, 10, 64)
	switch {
	case r.MemoryLimit > 0 && text == "max":
		return -1, true
	case r.MemoryLimit > 0 && err == nil && swap >= 0 && swap <= math.MaxInt64-r.MemoryLimit:
		return r.MemoryLimit + swap, true
	}
	return cmp.Or(r.MemorySwapLimit, r.MemoryLimit), false
}

// PairedWith returns an update r of is with both of the limits of memory and swap if it has one: runtimes write the two
// together, and would take the one that is left out for none.
func (r Resources) PairedWith(is *Resources) Resources {
	swap := r.Unified[MemorySwapMax]
	switch has := is.Unified[MemorySwapMax]; {
	case swap != "" && r.MemoryLimit == 0:
		r.MemoryLimit = is.MemoryLimit
	case swap == "" && has != "" && r.MemoryLimit != 0 && r.MemorySwapLimit == 0:
		unified := map[string]string{MemorySwapMax: has}
		maps.Copy(unified, r.Unified)
		r.Unified = unified
	}
	return r
}

// HugepageLimit bounds one page size, written as in "2MB" or "1GB".
type HugepageLimit struct {
	PageSize string `json:"pageSize"`
	Limit    uint64 `json:"limit"` // bytes
}

// ProfileKind says where a seccomp or AppArmor profile comes from.
type ProfileKind string

// The kinds of security profile in the CRI.
const (
	ProfileRuntimeDefault ProfileKind = "runtime-default"
	ProfileUnconfined     ProfileKind = "unconfined"
	ProfileLocalhost      ProfileKind = "localhost"
)

// Profile is a seccomp or AppArmor profile; Ref is a path or a name for ProfileLocalhost.
type Profile struct {
	Kind ProfileKind `json:"kind"`
	Ref  string      `json:"ref,omitempty"`
}

// SELinux is the four parts of a label.
type SELinux struct {
	User  string `json:"user,omitempty"`
	Role  string `json:"role,omitempty"`
	Type  string `json:"type,omitempty"`
	Level string `json:"level,omitempty"`
}

// Empty says that no part of a label is named.
func (s *SELinux) Empty() bool { return s == nil || *s == SELinux{} }

// Security is the security context of a sandbox or container. Pointers distinguish "not said".
type Security struct {
	Privileged         bool    `json:"privileged,omitempty"`
	RunAsUser          *int64  `json:"runAsUser,omitempty"`
	RunAsGroup         *int64  `json:"runAsGroup,omitempty"`
	RunAsUsername      string  `json:"runAsUsername,omitempty"`
	SupplementalGroups []int64 `json:"supplementalGroups,omitempty"`
	// StrictGroups leaves out the groups that the image's /etc/group gives (SupplementalGroupsPolicy Strict).
	StrictGroups    bool     `json:"strictGroups,omitempty"`
	ReadOnlyRootfs  bool     `json:"readOnlyRootfs,omitempty"`
	NoNewPrivileges bool     `json:"noNewPrivileges,omitempty"`
	AddCaps         []string `json:"addCaps,omitempty"` // without "CAP_"; "ALL" allowed
	DropCaps        []string `json:"dropCaps,omitempty"`
	AddAmbientCaps  []string `json:"addAmbientCaps,omitempty"`
	MaskedPaths     []string `json:"maskedPaths,omitempty"`
	ReadonlyPaths   []string `json:"readonlyPaths,omitempty"`
	Seccomp         *Profile `json:"seccomp,omitempty"`  // nil: unconfined, as the CRI says
	AppArmor        *Profile `json:"apparmor,omitempty"` // nil: the engine's default
	SELinux         *SELinux `json:"selinux,omitempty"`
}

// DemandsSELinux says whether the label bounds the process, so that it may not run without one. Privileged processes
// have none, and spc_t is the type of those that nothing confines: manifests that work on every node name it.
func (s *Security) DemandsSELinux() bool {
	return !s.SELinux.Empty() && !s.Privileged && s.SELinux.Type != "spc_t"
}

// Reasons a container ended, as the kubelet and kubectl show them.
const (
	ReasonCompleted = "Completed" // exit code 0
	ReasonError     = "Error"     // any other exit code
	ReasonOOMKilled = "OOMKilled"
	ReasonUnknown   = "Unknown" // nobody saw how it ended; exit code 255
	ReasonStartFail = "StartError"
)

// Exit is how a container's main process ended.
type Exit struct {
	Code      int32     `json:"code"` // 128+n for signal n
	At        time.Time `json:"at"`
	OOMKilled bool      `json:"oomKilled,omitempty"`
	Unknown   bool      `json:"unknown,omitempty"`
}

// User is the identity that a container's main process was given.
type User struct {
	UID    int64   `json:"uid"`
	GID    int64   `json:"gid"`
	Groups []int64 `json:"groups,omitempty"`
}

// Container is a container as it is now; like Sandbox, a snapshot that nobody changes.
type Container struct {
	Spec       ContainerSpec  `json:"spec"`
	ID         string         `json:"id"`        // the engine's id, shown by the CRI
	SandboxID  string         `json:"sandboxID"` // the sandbox's engine id
	ImageRef   string         `json:"imageRef"`  // equals ImageID and Image.id for one image
	State      ContainerState `json:"state"`
	Pid        int            `json:"pid,omitempty"`    // on the node, 0 when not running
	CgroupPath string         `json:"cgroup,omitempty"` // below the cgroup mount, begins with "/"
	CreatedAt  time.Time      `json:"createdAt"`
	StartedAt  time.Time      `json:"startedAt,omitzero"`
	FinishedAt time.Time      `json:"finishedAt,omitzero"`
	ExitCode   int32          `json:"exitCode,omitempty"`
	Reason     string         `json:"reason,omitempty"`
	Message    string         `json:"message,omitempty"`
	// User is who the main process runs as; nil where the engine did not say.
	User *User `json:"user,omitempty"`
	// StopSignal is what StopContainer sends first: the spec's, else the image's, else SIGTERM.
	StopSignal string `json:"stopSignal,omitempty"`
	// Adjustment is what plugins had changed when the container was created; nil is nothing.
	Adjustment *Adjustment `json:"adjustment,omitempty"`
	Step       string      `json:"step,omitempty"`
	// Restored says that the container was made of a checkpoint, which its start restores.
	Restored bool `json:"restored,omitempty"`
	// BlockIOClass and RDTClass are classes of block I/O and of Intel RDT; "" is none.
	BlockIOClass string `json:"blockioClass,omitempty"`
	RDTClass     string `json:"rdtClass,omitempty"`
	// LogDropped is how many bytes of output its log's bounds have kept out of the log.
	LogDropped int64 `json:"logDropped,omitempty"`
}
