package cri

import (
	"math"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/pod"
)

var namespaceModes = map[runtime.NamespaceMode]pod.NamespaceMode{
	runtime.NamespaceMode_POD:       pod.NamespacePod,
	runtime.NamespaceMode_CONTAINER: pod.NamespaceContainer,
	runtime.NamespaceMode_NODE:      pod.NamespaceNode,
	runtime.NamespaceMode_TARGET:    pod.NamespaceTarget,
}

// podOrNode converts a namespace that can only be the pod's or the node's: the CRI gives CONTAINER
// and TARGET a meaning for process namespaces alone.
func podOrNode(field string, m runtime.NamespaceMode) (pod.NamespaceMode, error) {
	if m != runtime.NamespaceMode_POD && m != runtime.NamespaceMode_NODE {
		return "", invalid(field, "%v is neither POD nor NODE", m)
	}
	return namespaceModes[m], nil
}

// sandboxNamespaces converts the options of a pod. An absent message has the protobuf's zero
// values, so that the processes of the pod see each other.
func sandboxNamespaces(field string, o *runtime.NamespaceOption) (pod.Namespaces, error) {
	if o.GetPid() == runtime.NamespaceMode_TARGET {
		return pod.Namespaces{}, invalid(field+".pid", "TARGET is for containers")
	}
	return namespaces(field, o)
}

func namespaces(field string, o *runtime.NamespaceOption) (pod.Namespaces, error) {
	var (
		n   pod.Namespaces
		err error
		ok  bool
	)
	if n.Network, err = podOrNode(field+".network", o.GetNetwork()); err != nil {
		return n, err
	}
	if n.IPC, err = podOrNode(field+".ipc", o.GetIpc()); err != nil {
		return n, err
	}
	if n.PID, ok = namespaceModes[o.GetPid()]; !ok {
		return n, invalid(field+".pid", "%d is not a namespace mode", o.GetPid())
	}
	n.TargetID = o.GetTargetId()
	switch {
	case n.PID == pod.NamespaceTarget && n.TargetID == "":
		return n, invalid(field+".target_id", "must name a container when pid is TARGET")
	case n.PID != pod.NamespaceTarget && n.TargetID != "":
		return n, invalid(field+".target_id", "is only for pid TARGET")
	}
	if err = checkLine(field+".target_id", n.TargetID); err != nil {
		return n, err
	}
	n.User, err = userNamespace(field+".userns_options", o.GetUsernsOptions())
	return n, err
}

// userNamespace returns nil for the node's user namespace.
func userNamespace(field string, u *runtime.UserNamespace) (*pod.UserNamespace, error) {
	if u == nil || u.GetMode() == runtime.NamespaceMode_NODE {
		if len(u.GetUids()) > 0 {
			return nil, invalid(field+".uids", "are only for mode POD")
		}
		if len(u.GetGids()) > 0 {
			return nil, invalid(field+".gids", "are only for mode POD")
		}
		return nil, nil
	}
	if u.GetMode() != runtime.NamespaceMode_POD {
		return nil, invalid(field+".mode", "%v is neither POD nor NODE", u.GetMode())
	}
	if len(u.GetUids()) == 0 {
		return nil, invalid(field+".uids", "must not be empty for mode POD")
	}
	if len(u.GetGids()) == 0 {
		return nil, invalid(field+".gids", "must not be empty for mode POD")
	}
	uids, err := podIDs(field+".uids", u.GetUids())
	if err != nil {
		return nil, err
	}
	gids, err := podIDs(field+".gids", u.GetGids())
	if err != nil {
		return nil, err
	}
	return &pod.UserNamespace{UIDs: uids, GIDs: gids}, nil
}

// podIDs holds the rule that the kubelet and other runtimes know: one range, which begins with root.
func podIDs(field string, list []*runtime.IDMapping) ([]pod.IDMapping, error) {
	if len(list) != 1 {
		return nil, invalid(field, "%d mappings; one is supported", len(list))
	}
	if list[0].GetContainerId() != 0 {
		return nil, invalid(field+".container_id", "%d: the range must begin with 0", list[0].GetContainerId())
	}
	return idMappings(field, list)
}

func idMappings(field string, list []*runtime.IDMapping) ([]pod.IDMapping, error) {
	var out []pod.IDMapping
	for _, m := range list {
		if m.GetLength() == 0 {
			return nil, invalid(field+".length", "must not be 0")
		}
		end := uint64(m.GetLength()) - 1
		if uint64(m.GetHostId())+end > math.MaxUint32 {
			return nil, invalid(field+".host_id", "%d ids from %d are more than there are", m.GetLength(), m.GetHostId())
		}
		if uint64(m.GetContainerId())+end > math.MaxUint32 {
			return nil, invalid(field+".container_id", "%d ids from %d are more than there are", m.GetLength(), m.GetContainerId())
		}
		out = append(out, pod.IDMapping{ContainerID: m.GetContainerId(), HostID: m.GetHostId(), Length: m.GetLength()})
	}
	return out, nil
}
