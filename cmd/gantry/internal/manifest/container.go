package manifest

import (
	"fmt"
	"path"
	"path/filepath"
	"strings"

	core "k8s.io/api/core/v1"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (b *builder) containers() error {
	for i := range b.in.Spec.InitContainers {
		c, err := b.container(&b.in.Spec.InitContainers[i])
		if err != nil {
			return err
		}
		if p := b.in.Spec.InitContainers[i].RestartPolicy; p != nil {
			if *p != core.ContainerRestartPolicyAlways {
				return fmt.Errorf("init container %s: restartPolicy %q is not Always", c.Config.Metadata.Name, *p)
			}
			c.Sidecar = true
		}
		b.out.Init = append(b.out.Init, c)
	}
	for i := range b.in.Spec.Containers {
		c, err := b.container(&b.in.Spec.Containers[i])
		if err != nil {
			return err
		}
		b.out.Containers = append(b.out.Containers, c)
	}
	return nil
}

func (b *builder) container(in *core.Container) (Container, error) {
	out := Container{Pull: pullPolicy(in.Image, in.ImagePullPolicy)}
	if err := b.fill(in, &out); err != nil {
		return Container{}, fmt.Errorf("container %s: %w", in.Name, err)
	}
	return out, nil
}

func (b *builder) fill(in *core.Container, out *Container) error {
	env, err := b.env(in.Env)
	if err != nil {
		return err
	}
	vars := make(map[string]string, len(env))
	for _, kv := range env {
		vars[kv.Key] = string(kv.Value)
	}
	mounts, err := b.mounts(in.VolumeMounts, out)
	if err != nil {
		return err
	}
	res, err := resources(in.Resources)
	if err != nil {
		return err
	}
	sec, err := b.containerSecurity(in, out)
	if err != nil {
		return err
	}
	labels := map[string]string{"io.kubernetes.container.name": in.Name}
	for _, k := range []string{"io.kubernetes.pod.name", "io.kubernetes.pod.namespace", "io.kubernetes.pod.uid"} {
		labels[k] = b.out.Sandbox.Labels[k]
	}
	out.Config = &v1.ContainerConfig{
		Metadata:   &v1.ContainerMetadata{Name: in.Name},
		Image:      &v1.ImageSpec{Image: in.Image, UserSpecifiedImage: in.Image},
		Command:    expandAll(in.Command, vars),
		Args:       expandAll(in.Args, vars),
		WorkingDir: in.WorkingDir,
		Envs:       env,
		Mounts:     mounts,
		Labels:     labels,
		LogPath:    filepath.Join(in.Name, "0.log"),
		Stdin:      in.Stdin,
		StdinOnce:  in.StdinOnce,
		Tty:        in.TTY,
		Linux:      &v1.LinuxContainerConfig{Resources: res, SecurityContext: sec},
	}
	return nil
}

// pullPolicy is the API server's default where none is given: Always for :latest and for no tag.
func pullPolicy(image string, said core.PullPolicy) core.PullPolicy {
	if said != "" {
		return said
	}
	if strings.Contains(image, "@") {
		return core.PullIfNotPresent
	}
	_, tag, tagged := strings.Cut(path.Base(image), ":")
	if !tagged || tag == "latest" {
		return core.PullAlways
	}
	return core.PullIfNotPresent
}

func (b *builder) env(in []core.EnvVar) ([]*v1.KeyValue, error) {
	var out []*v1.KeyValue
	vars := map[string]string{}
	for _, e := range in {
		value := expand(e.Value, vars)
		if e.ValueFrom != nil {
			var err error
			if value, err = b.valueFrom(e.ValueFrom); err != nil {
				return nil, fmt.Errorf("env %s: %w", e.Name, err)
			}
		}
		vars[e.Name] = value
		out = append(out, &v1.KeyValue{Key: e.Name, Value: []byte(value)})
	}
	return out, nil
}

// valueFrom knows the fields that are fixed before the pod runs.
func (b *builder) valueFrom(from *core.EnvVarSource) (string, error) {
	if from.FieldRef == nil {
		return "", fmt.Errorf("valueFrom.%s is not supported: only fieldRef is", strings.Join(jsonKeys(from), ", "))
	}
	meta := b.out.Sandbox.Metadata
	switch from.FieldRef.FieldPath {
	case "metadata.name":
		return meta.Name, nil
	case "metadata.namespace":
		return meta.Namespace, nil
	case "metadata.uid":
		return meta.Uid, nil
	case "spec.serviceAccountName":
		return b.in.Spec.ServiceAccountName, nil
	}
	for prefix, from2 := range map[string]map[string]string{"metadata.labels": b.in.Labels, "metadata.annotations": b.in.Annotations} {
		rest, ok := strings.CutPrefix(from.FieldRef.FieldPath, prefix+"['")
		if key, end := strings.CutSuffix(rest, "']"); ok && end {
			return from2[key], nil
		}
	}
	return "", fmt.Errorf("fieldRef %s is not supported: only metadata's fields are", from.FieldRef.FieldPath)
}

func expandAll(in []string, vars map[string]string) []string {
	var out []string
	for _, s := range in {
		out = append(out, expand(s, vars))
	}
	return out
}

// expand replaces $(NAME) where NAME is known; $$(NAME) is a literal $(NAME). The rules are those of
// the API's documentation of Container.command.
func expand(s string, vars map[string]string) string {
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		rest := s[i:]
		switch {
		case strings.HasPrefix(rest, "$$"):
			out.WriteByte('$')
			i++
			continue
		case strings.HasPrefix(rest, "$("):
			name, _, closed := strings.Cut(rest[2:], ")")
			if value, known := vars[name]; closed && known {
				out.WriteString(value)
				i += len(name) + 2
				continue
			}
		}
		out.WriteByte(s[i])
	}
	return out.String()
}
