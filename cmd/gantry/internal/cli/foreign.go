package cli

import (
	"context"

	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/admin"
	"gantry/internal/pod"
)

// psForeign prints what an earlier runtime has left on Docker. The CRI does not show it: what the
// kubelet sees, it takes for its own.
func (a *app) psForeign(ctx context.Context, f *format) error {
	return a.asking(func(c *admin.Client) error {
		left, err := c.Foreign(ctx)
		if err != nil {
			return err
		}
		pods := map[string]*v1.PodSandbox{}
		var all []*v1.Container
		for _, p := range left.Pods {
			md := &p.Spec.Metadata
			pods[p.ID] = &v1.PodSandbox{Id: p.ID, Metadata: &v1.PodSandboxMetadata{Name: md.Name, Namespace: md.Namespace, Uid: md.UID}}
			all = append(all, &v1.Container{
				Id: p.ID, PodSandboxId: p.ID, Metadata: &v1.ContainerMetadata{Name: "POD", Attempt: md.Attempt},
				Image: &v1.ImageSpec{Image: "-"}, CreatedAt: p.CreatedAt.UnixNano(), State: pauseState(p.State),
			})
		}
		for _, c := range left.Containers {
			all = append(all, &v1.Container{
				Id: c.ID, PodSandboxId: c.SandboxID, Metadata: &v1.ContainerMetadata{Name: c.Spec.Name, Attempt: c.Spec.Attempt},
				Image: &v1.ImageSpec{Image: c.Spec.ImageName}, ImageRef: c.ImageRef, CreatedAt: c.CreatedAt.UnixNano(),
				State: foreignState(c.State), Labels: c.Spec.Labels, Annotations: c.Spec.Annotations,
			})
		}
		return f.print(a.out, []string{"CONTAINER ID", "POD", "NAME", "IMAGE", "STATE", "AGE"}, containerRows(all, pods))
	})
}

func pauseState(s pod.SandboxState) v1.ContainerState {
	if s == pod.SandboxReady {
		return v1.ContainerState_CONTAINER_RUNNING
	}
	return v1.ContainerState_CONTAINER_EXITED
}

func foreignState(s pod.ContainerState) v1.ContainerState {
	switch s {
	case pod.ContainerRunning:
		return v1.ContainerState_CONTAINER_RUNNING
	case pod.ContainerCreated:
		return v1.ContainerState_CONTAINER_CREATED
	}
	return v1.ContainerState_CONTAINER_EXITED
}
