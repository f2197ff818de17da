// Package pod holds the nouns every other package speaks: sandboxes, containers, images, and the
// state changes that are legal. It knows no protobuf, no OCI spec and no engine. Everything here
// can be written to the journal as JSON, so a field's name and meaning are a file format.
package pod

import (
	"crypto/rand"
	"encoding/hex"
	"time"
)

// Key is gantry's own name for a sandbox or a container: 64 hexadecimal digits, chosen before
// anything exists. The journal is keyed by it and every engine sets it as a label on what it makes,
// so a crash between "made" and "recorded" can be undone. On the native engine it is also the id
// that the CRI shows; on Docker the CRI shows Docker's id.
type Key string

// NewKey returns a key nobody has used. It never fails: crypto/rand does not.
func NewKey() Key {
	var b [32]byte
	_, _ = rand.Read(b[:])
	return Key(hex.EncodeToString(b[:]))
}

// Short is the first 13 characters, as crictl prints ids.
func (k Key) Short() string { return string(k[:min(13, len(k))]) }

// Metadata identifies a sandbox among its pod's attempts (CRI PodSandboxMetadata).
type Metadata struct {
	Name      string `json:"name"`
	UID       string `json:"uid"`
	Namespace string `json:"namespace"`
	Attempt   uint32 `json:"attempt,omitempty"`
}

// SandboxSpec is what the client asked for. It never changes after RunPodSandbox accepted it.
type SandboxSpec struct {
	Key          Key               `json:"key"`
	Metadata     Metadata          `json:"metadata"`
	Handler      string            `json:"handler,omitempty"` // RuntimeClass handler; "" is the default
	Hostname     string            `json:"hostname,omitempty"`
	LogDirectory string            `json:"logDirectory,omitempty"` // absolute, or "" for no logs
	DNS          *DNS              `json:"dns,omitempty"`          // nil: the node's resolv.conf
	Ports        []PortMapping     `json:"ports,omitempty"`
	Labels       map[string]string `json:"labels,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
	CgroupParent string            `json:"cgroupParent,omitempty"` // absolute cgroup path, or a slice name under systemd
	Sysctls      map[string]string `json:"sysctls,omitempty"`
	Namespaces   Namespaces        `json:"namespaces"`
	Security     Security          `json:"security"`
	Resources    *Resources        `json:"resources,omitempty"` // sum of the pod's containers, as the kubelet gives it
	Overhead     *Resources        `json:"overhead,omitempty"`
}

// DNS is the content of a pod's resolv.conf.
type DNS struct {
	Servers  []string `json:"servers,omitempty"`
	Searches []string `json:"searches,omitempty"`
	Options  []string `json:"options,omitempty"`
}

// Protocol of a port mapping, in lower case as CNI's portmap wants it.
type Protocol string

// The protocols a port mapping may have.
const (
	TCP  Protocol = "tcp"
	UDP  Protocol = "udp"
	SCTP Protocol = "sctp"
)

// PortMapping forwards HostIP:HostPort to the pod. HostPort 0 means that none is wanted.
type PortMapping struct {
	Protocol      Protocol `json:"protocol"`
	ContainerPort int32    `json:"containerPort"`
	HostPort      int32    `json:"hostPort,omitempty"`
	HostIP        string   `json:"hostIP,omitempty"`
}

// NamespaceMode says whose namespace is used (CRI NamespaceMode).
type NamespaceMode string

// The namespace modes of the CRI.
const (
	NamespacePod       NamespaceMode = "pod"
	NamespaceContainer NamespaceMode = "container"
	NamespaceNode      NamespaceMode = "node"
	NamespaceTarget    NamespaceMode = "target"
)

// Namespaces is CRI NamespaceOption. TargetID is a container id, for PID == NamespaceTarget.
type Namespaces struct {
	Network  NamespaceMode  `json:"network"`
	PID      NamespaceMode  `json:"pid"`
	IPC      NamespaceMode  `json:"ipc"`
	TargetID string         `json:"targetID,omitempty"`
	User     *UserNamespace `json:"user,omitempty"` // nil: the node's
}

// UserNamespace maps ids inside the pod to ids on the node.
type UserNamespace struct {
	UIDs []IDMapping `json:"uids"`
	GIDs []IDMapping `json:"gids"`
}

// IDMapping maps Length ids from ContainerID to HostID.
type IDMapping struct {
	ContainerID uint32 `json:"containerID"`
	HostID      uint32 `json:"hostID"`
	Length      uint32 `json:"length"`
}

// Network is what attaching a sandbox to its network gave.
type Network struct {
	IPs []string `json:"ips,omitempty"` // the primary first
	MAC string   `json:"mac,omitempty"`
	// Result is the CNI result as JSON, kept because DEL and CHECK want it back.
	Result []byte `json:"result,omitempty"`
}

// Sandbox is a pod sandbox as it is now. Values handed out by lifecycle are snapshots that nobody
// changes: readers may keep them, writers replace them.
type Sandbox struct {
	Spec      SandboxSpec  `json:"spec"`
	ID        string       `json:"id"` // the engine's id, the one that the CRI shows
	Engine    string       `json:"engine"`
	State     SandboxState `json:"state"`
	CreatedAt time.Time    `json:"createdAt"`
	// NetNS is the path of the network namespace; "" on the host network.
	NetNS   string   `json:"netns,omitempty"`
	Network *Network `json:"network,omitempty"` // nil before attach and after detach
	// CgroupPath is the cgroup that the pod's containers are below; "" where the engine has none.
	CgroupPath string `json:"cgroup,omitempty"`
	// Step is the last step of the list that was begun, for recovery and for `gantry inspect`.
	Step string `json:"step,omitempty"`
	// Capture is the checkpoint that is being taken of the pod's containers; nil when none is.
	Capture *Capture `json:"capture,omitempty"`
	// Restoring says that the pod is being made from a checkpoint and not all of it is there.
	Restoring bool `json:"restoring,omitempty"`
}

// Capture is a checkpoint under way: what is to be undone if it does not come to its end.
type Capture struct {
	Containers []Key    `json:"containers"` // that are paused, or may be
	Partial    []string `json:"partial"`    // paths of what is not whole, or may be
}

// RestoredPod is what restoring a pod made.
type RestoredPod struct {
	ID         string
	Containers map[string]string // ids by name
}

// HostNetwork says whether the sandbox uses the node's network namespace.
func (s *SandboxSpec) HostNetwork() bool { return s.Namespaces.Network == NamespaceNode }
