package cri

import (
	"context"
	"encoding/json"
	"slices"
	"strings"

	"google.golang.org/grpc"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/pod"
)

const (
	runtimeName = "gantry"
	// kubeletVersion is the version of the kubelet's side of this API; it has been 0.1.0 for ever.
	kubeletVersion = "0.1.0"
	// configurationCurrent is a condition of gantry's own, there only while it is false.
	configurationCurrent = "GantryConfigurationCurrent"
)

// Version names the API as the client called it: v1, or v1alpha2 under the old name.
func (s *Service) Version(ctx context.Context, _ *runtime.VersionRequest) (*runtime.VersionResponse, error) {
	api := "v1"
	if method, ok := grpc.Method(ctx); ok && strings.HasPrefix(method, "/"+legacy+".") {
		api = "v1alpha2"
	}
	return &runtime.VersionResponse{
		Version: kubeletVersion, RuntimeName: runtimeName, RuntimeVersion: s.version, RuntimeApiVersion: api,
	}, nil
}

// Status says what was checked just now, with the reason where something is not ready.
func (s *Service) Status(ctx context.Context, req *runtime.StatusRequest) (*runtime.StatusResponse, error) {
	st, err := s.node.Status(ctx)
	if err != nil {
		return nil, err
	}
	res := &runtime.StatusResponse{
		Status: &runtime.RuntimeStatus{Conditions: []*runtime.RuntimeCondition{
			condition(runtime.RuntimeReady, "RuntimeNotReady", st.Runtime),
			condition(runtime.NetworkReady, "NetworkNotReady", st.Network),
		}},
		RuntimeHandlers: fromHandlers(st),
		Features:        &runtime.RuntimeFeatures{SupplementalGroupsPolicy: true, MountOptions: true},
	}
	if st.Configuration != nil {
		res.Status.Conditions = append(res.Status.Conditions, condition(configurationCurrent, "ReloadFailed", st.Configuration))
	}
	if req.GetVerbose() {
		res.Info, err = statusInfo(st.Verbose)
	}
	return res, err
}

func condition(kind, reason string, err error) *runtime.RuntimeCondition {
	if err != nil {
		return &runtime.RuntimeCondition{Type: kind, Reason: reason, Message: err.Error()}
	}
	return &runtime.RuntimeCondition{Type: kind, Status: true}
}

// fromHandlers shows the default handler under its empty name too, where the kubelet looks for the
// features of pods without a RuntimeClass.
func fromHandlers(st *pod.NodeStatus) []*runtime.RuntimeHandler {
	names := st.Handlers
	if !slices.Contains(names, "") {
		names = append([]string{""}, names...)
	}
	var out []*runtime.RuntimeHandler
	for _, name := range names {
		f := st.Features[name]
		out = append(out, &runtime.RuntimeHandler{Name: name, Features: &runtime.RuntimeHandlerFeatures{
			RecursiveReadOnlyMounts: f.RecursiveReadOnlyMounts,
			UserNamespaces:          f.UserNamespaces,
		}})
	}
	return out
}

// statusInfo lets JSON through and makes JSON of what is not: "value should be in json format".
func statusInfo(details map[string]string) (map[string]string, error) {
	out := make(map[string]string, len(details))
	for k, v := range details {
		if !json.Valid([]byte(v)) {
			b, err := json.Marshal(v)
			if err != nil {
				return nil, err
			}
			v = string(b)
		}
		out[k] = v
	}
	return out, nil
}

// RuntimeConfig tells the kubelet which cgroup driver it must use.
func (s *Service) RuntimeConfig(ctx context.Context, _ *runtime.RuntimeConfigRequest) (*runtime.RuntimeConfigResponse, error) {
	st, err := s.node.Status(ctx)
	if err != nil {
		return nil, err
	}
	driver := runtime.CgroupDriver_CGROUPFS
	if st.SystemdCgroup {
		driver = runtime.CgroupDriver_SYSTEMD
	}
	return &runtime.RuntimeConfigResponse{Linux: &runtime.LinuxRuntimeConfiguration{CgroupDriver: driver}}, nil
}

// UpdateRuntimeConfig is accepted and changes nothing: its only content is the node's pod CIDR,
// which the network's own configuration holds.
func (s *Service) UpdateRuntimeConfig(context.Context, *runtime.UpdateRuntimeConfigRequest) (*runtime.UpdateRuntimeConfigResponse, error) {
	return &runtime.UpdateRuntimeConfigResponse{}, nil
}
