package observe

import (
	"log/slog"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// subjects are what an RPC is about: pod, container and image, by id where there is one and by
// name else. Nothing else of a request is logged: environments and credentials are secret.
func subjects(req, res any) []slog.Attr {
	var out []slog.Attr
	for _, s := range []struct{ key, value string }{
		{"pod", podOf(req)},
		{"pod_id", first(podID(res), podID(req))},
		{"container", containerOf(req)},
		{"container_id", first(containerID(res), containerID(req))},
		{"image", imageOf(req)},
	} {
		if s.value != "" {
			out = append(out, slog.String(s.key, s.value))
		}
	}
	return out
}

func first(list ...string) string {
	for _, s := range list {
		if s != "" {
			return s
		}
	}
	return ""
}

func podID(m any) string {
	if r, ok := m.(interface{ GetPodSandboxId() string }); ok {
		return r.GetPodSandboxId()
	}
	return ""
}

func containerID(m any) string {
	if r, ok := m.(interface{ GetContainerId() string }); ok {
		return r.GetContainerId()
	}
	return ""
}

// podOf is "namespace/name".
func podOf(req any) string {
	var m *runtime.PodSandboxMetadata
	switch r := req.(type) {
	case interface {
		GetConfig() *runtime.PodSandboxConfig
	}:
		m = r.GetConfig().GetMetadata()
	case interface {
		GetSandboxConfig() *runtime.PodSandboxConfig
	}:
		m = r.GetSandboxConfig().GetMetadata()
	}
	if m == nil {
		return ""
	}
	return m.GetNamespace() + "/" + m.GetName()
}

func containerOf(req any) string {
	if r, ok := req.(interface {
		GetConfig() *runtime.ContainerConfig
	}); ok {
		return r.GetConfig().GetMetadata().GetName()
	}
	return ""
}

func imageOf(req any) string {
	switch r := req.(type) {
	case interface{ GetImage() *runtime.ImageSpec }:
		return r.GetImage().GetImage()
	case interface {
		GetConfig() *runtime.ContainerConfig
	}:
		return first(r.GetConfig().GetImage().GetUserSpecifiedImage(), r.GetConfig().GetImage().GetImage())
	}
	return ""
}
