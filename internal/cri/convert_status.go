package cri

import (
	"encoding/json"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/pod"
)

// nanos is a time in the CRI: nanoseconds since 1970, 0 when there is none.
func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func fromMetadata(m pod.Metadata) *runtime.PodSandboxMetadata {
	return &runtime.PodSandboxMetadata{Name: m.Name, Uid: m.UID, Namespace: m.Namespace, Attempt: m.Attempt}
}

func fromSandboxState(s pod.SandboxState) runtime.PodSandboxState {
	if s == pod.SandboxReady {
		return runtime.PodSandboxState_SANDBOX_READY
	}
	return runtime.PodSandboxState_SANDBOX_NOTREADY
}

func fromSandbox(s *pod.Sandbox) *runtime.PodSandbox {
	return &runtime.PodSandbox{
		Id:             s.ID,
		Metadata:       fromMetadata(s.Spec.Metadata),
		State:          fromSandboxState(s.State),
		CreatedAt:      nanos(s.CreatedAt),
		Labels:         s.Spec.Labels,
		Annotations:    s.Spec.Annotations,
		RuntimeHandler: s.Spec.Handler,
	}
}

func fromSandboxStatus(s *pod.Sandbox) *runtime.PodSandboxStatus {
	out := &runtime.PodSandboxStatus{
		Id:        s.ID,
		Metadata:  fromMetadata(s.Spec.Metadata),
		State:     fromSandboxState(s.State),
		CreatedAt: nanos(s.CreatedAt),
		Network:   &runtime.PodSandboxNetworkStatus{},
		Linux: &runtime.LinuxPodSandboxStatus{
			Namespaces: &runtime.Namespace{Options: fromNamespaces(s.Spec.Namespaces)},
		},
		Labels:         s.Spec.Labels,
		Annotations:    s.Spec.Annotations,
		RuntimeHandler: s.Spec.Handler,
	}
	// On the node's network the kubelet fills in the node's addresses.
	if n := s.Network; n != nil && len(n.IPs) > 0 {
		out.Network.Ip = n.IPs[0]
		for _, ip := range n.IPs[1:] {
			out.Network.AdditionalIps = append(out.Network.AdditionalIps, &runtime.PodIP{Ip: ip})
		}
	}
	return out
}

func fromNamespaces(n pod.Namespaces) *runtime.NamespaceOption {
	out := &runtime.NamespaceOption{
		Network: fromNamespaceMode(n.Network), Pid: fromNamespaceMode(n.PID), Ipc: fromNamespaceMode(n.IPC),
		TargetId: n.TargetID,
	}
	if n.User != nil {
		out.UsernsOptions = &runtime.UserNamespace{
			Mode: runtime.NamespaceMode_POD, Uids: fromIDMappings(n.User.UIDs), Gids: fromIDMappings(n.User.GIDs),
		}
	}
	return out
}

func fromNamespaceMode(m pod.NamespaceMode) runtime.NamespaceMode {
	for k, v := range namespaceModes {
		if v == m {
			return k
		}
	}
	return runtime.NamespaceMode_POD
}

// sandboxInfo is the verbose answer of PodSandboxStatus.
func sandboxInfo(s *pod.Sandbox) (map[string]string, error) {
	details := map[string]any{
		"engine": s.Engine, "state": s.State, "step": s.Step, "netns": s.NetNS, "config": s.Spec,
	}
	if n := s.Network; n != nil {
		details["mac"] = n.MAC
		if json.Valid(n.Result) {
			details["cniResult"] = json.RawMessage(n.Result)
		}
	}
	return verbose(details)
}

func fromContainerState(s pod.ContainerState) runtime.ContainerState {
	switch s {
	case pod.ContainerCreated:
		return runtime.ContainerState_CONTAINER_CREATED
	case pod.ContainerRunning:
		return runtime.ContainerState_CONTAINER_RUNNING
	case pod.ContainerExited:
		return runtime.ContainerState_CONTAINER_EXITED
	}
	return runtime.ContainerState_CONTAINER_UNKNOWN
}

func fromContainerMetadata(s *pod.ContainerSpec) *runtime.ContainerMetadata {
	return &runtime.ContainerMetadata{Name: s.Name, Attempt: s.Attempt}
}

func fromContainerImage(s *pod.ContainerSpec) *runtime.ImageSpec {
	return &runtime.ImageSpec{Image: s.ImageName, UserSpecifiedImage: s.ImageName}
}

func fromContainer(c *pod.Container) *runtime.Container {
	return &runtime.Container{
		Id:           c.ID,
		PodSandboxId: c.SandboxID,
		Metadata:     fromContainerMetadata(&c.Spec),
		Image:        fromContainerImage(&c.Spec),
		ImageRef:     c.ImageRef,
		ImageId:      c.ImageRef,
		State:        fromContainerState(c.State),
		CreatedAt:    nanos(c.CreatedAt),
		Labels:       c.Spec.Labels,
		Annotations:  c.Spec.Annotations,
	}
}

func fromContainerStatus(c *pod.Container) *runtime.ContainerStatus {
	out := &runtime.ContainerStatus{
		Id:          c.ID,
		Metadata:    fromContainerMetadata(&c.Spec),
		State:       fromContainerState(c.State),
		CreatedAt:   nanos(c.CreatedAt),
		StartedAt:   nanos(c.StartedAt),
		FinishedAt:  nanos(c.FinishedAt),
		ExitCode:    c.ExitCode,
		Image:       fromContainerImage(&c.Spec),
		ImageRef:    c.ImageRef,
		ImageId:     c.ImageRef,
		Reason:      c.Reason,
		Message:     c.Message,
		Labels:      c.Spec.Labels,
		Annotations: c.Spec.Annotations,
		Mounts:      fromMounts(c.Spec.Mounts),
		LogPath:     c.Spec.LogPath,
		Resources:   &runtime.ContainerResources{Linux: fromResources(&c.Spec.Resources)},
		StopSignal:  fromStopSignal(c.StopSignal),
	}
	if u := c.User; u != nil {
		out.User = &runtime.ContainerUser{
			Linux: &runtime.LinuxContainerUser{Uid: u.UID, Gid: u.GID, SupplementalGroups: u.Groups},
		}
	}
	return out
}

// containerInfo is the verbose answer of ContainerStatus.
func containerInfo(c *pod.Container) (map[string]string, error) {
	return verbose(map[string]any{
		"pid": c.Pid, "sandboxID": c.SandboxID, "cgroup": c.CgroupPath, "state": c.State, "step": c.Step, "config": c.Spec,
		"adjustment": c.Adjustment, // by NRI plugins; null is none
		"restored":   c.Restored, "logDroppedBytes": c.LogDropped,
		"blockioClass": c.BlockIOClass, "rdtClass": c.RDTClass,
	})
}
