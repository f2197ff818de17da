package cni

import (
	"fmt"
	"math"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/utils"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Annotations with the bandwidth of a pod, in bits a second as a Kubernetes quantity.
const (
	ingressAnnotation = "kubernetes.io/ingress-bandwidth"
	egressAnnotation  = "kubernetes.io/egress-bandwidth"
)

// Names of capability arguments, by CNI's CONVENTIONS.md; the last is containerd's.
const (
	capPorts       = "portMappings"
	capDNS         = "dns"
	capBandwidth   = "bandwidth"
	capCgroupPath  = "cgroupPath"
	capAnnotations = "io.kubernetes.cri.pod-annotations"
)

type portMapping struct {
	HostPort      int32  `json:"hostPort"`
	ContainerPort int32  `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP,omitempty"`
}

type dns struct {
	Servers  []string `json:"servers,omitempty"`
	Searches []string `json:"searches,omitempty"`
	Options  []string `json:"options,omitempty"`
}

// bandwidth is in bits a second, bursts in bits. A burst is as large as may be, because a shaper's
// bucket must hold the rate's largest packet train.
type bandwidth struct {
	IngressRate  uint64 `json:"ingressRate,omitempty"`
	IngressBurst uint64 `json:"ingressBurst,omitempty"`
	EgressRate   uint64 `json:"egressRate,omitempty"`
	EgressBurst  uint64 `json:"egressBurst,omitempty"`
}

// runtimeConf is what plugins are told of a pod.
func runtimeConf(a *Attachment) (*libcni.RuntimeConf, error) {
	if err := utils.ValidateContainerID(string(a.Key)); err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	caps := make(map[string]any)
	var ports []portMapping
	for _, p := range a.Ports {
		if p.HostPort > 0 {
			ports = append(ports, portMapping{p.HostPort, p.ContainerPort, string(p.Protocol), p.HostIP})
		}
	}
	if len(ports) > 0 {
		caps[capPorts] = ports
	}
	if a.DNS != nil {
		caps[capDNS] = dns(*a.DNS)
	}
	b, err := bandwidthOf(a.Annotations)
	if err != nil {
		return nil, err
	}
	if b != (bandwidth{}) {
		caps[capBandwidth] = b
	}
	if a.CgroupParent != "" {
		caps[capCgroupPath] = a.CgroupParent
	}
	if len(a.Annotations) > 0 {
		caps[capAnnotations] = a.Annotations
	}
	return &libcni.RuntimeConf{
		ContainerID: string(a.Key),
		NetNS:       a.NetNS,
		IfName:      interfaceName,
		Args: [][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", a.Metadata.Namespace},
			{"K8S_POD_NAME", a.Metadata.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", string(a.Key)},
			{"K8S_POD_UID", a.Metadata.UID},
		},
		CapabilityArgs: caps,
	}, nil
}

func bandwidthOf(annotations map[string]string) (b bandwidth, err error) {
	if b.IngressRate, err = rate(annotations, ingressAnnotation); err != nil {
		return bandwidth{}, err
	}
	if b.EgressRate, err = rate(annotations, egressAnnotation); err != nil {
		return bandwidth{}, err
	}
	if b.IngressRate > 0 {
		b.IngressBurst = math.MaxUint32
	}
	if b.EgressRate > 0 {
		b.EgressBurst = math.MaxUint32
	}
	return b, nil
}

// rate reads one annotation; 0 when it is absent. The bounds are the kubelet's.
func rate(annotations map[string]string, name string) (uint64, error) {
	text, ok := annotations[name]
	if !ok {
		return 0, nil
	}
	q, err := resource.ParseQuantity(text)
	if err != nil {
		return 0, fmt.Errorf("annotation %s=%q: %w: %w", name, text, err, errdefs.ErrInvalidArgument)
	}
	if q.Cmp(resource.MustParse("1k")) < 0 || q.Cmp(resource.MustParse("1P")) > 0 {
		return 0, fmt.Errorf("annotation %s=%q: a bandwidth is from 1k to 1P: %w", name, text, errdefs.ErrInvalidArgument)
	}
	return uint64(q.Value()), nil
}
