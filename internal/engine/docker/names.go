package docker

import (
	"maps"
	"strconv"
	"strings"

	"gantry/internal/pod"
)

// Labels of what the engine makes. Those below io.kubernetes are dockershim's, which operators'
// scripts select by; the kubelet's own labels are kept beside them.
const (
	// LabelKey is the journal's key.
	LabelKey = "io.gantry.key"
	// labelSandboxKey is the key of a container's sandbox.
	labelSandboxKey = "io.gantry.sandbox.key"

	labelType      = "io.kubernetes.docker.type"
	labelSandboxID = "io.kubernetes.sandbox.id"
	labelLogPath   = "io.kubernetes.container.logpath"
	// What stands in files of the container's cgroup, as JSON.
	labelFiles    = "io.gantry.cgroup"
	typeSandbox   = "podsandbox"
	typeContainer = "container"

	annotationPrefix = "annotation."
)

// sandboxName and containerName are dockershim's: k8s_<container>_<pod>_<namespace>_<uid>_<attempt>.
func sandboxName(md *pod.Metadata) string { return joinName("POD", md, md.Attempt) }

func containerName(c *pod.ContainerSpec, md *pod.Metadata) string {
	return joinName(c.Name, md, c.Attempt)
}

func joinName(container string, md *pod.Metadata, attempt uint32) string {
	parts := []string{"k8s", container, md.Name, md.Namespace, md.UID, strconv.FormatUint(uint64(attempt), 10)}
	for i, part := range parts {
		parts[i] = strings.Map(legalInName, part)
	}
	return strings.Join(parts, "_")
}

// legalInName replaces what Docker's names may not have.
func legalInName(r rune) rune {
	switch {
	case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '_', r == '.', r == '-':
		return r
	}
	return '-'
}

func sandboxLabels(spec *pod.SandboxSpec) map[string]string {
	all := clientLabels(spec.Labels, spec.Annotations)
	all[LabelKey] = string(spec.Key)
	all[labelType] = typeSandbox
	return all
}

func containerLabels(spec *pod.ContainerSpec, sandboxID string, files map[string]string) map[string]string {
	all := clientLabels(spec.Labels, spec.Annotations)
	all[LabelKey] = string(spec.Key)
	all[labelSandboxKey] = string(spec.Sandbox)
	all[labelType] = typeContainer
	all[labelSandboxID] = sandboxID
	all[labelLogPath] = spec.LogPath
	if text := encodeFiles(files); text != "" {
		all[labelFiles] = text
	}
	return all
}

func clientLabels(labels, annotations map[string]string) map[string]string {
	all := make(map[string]string, len(labels)+len(annotations)+5)
	maps.Copy(all, labels)
	for name, value := range annotations {
		all[annotationPrefix+name] = value
	}
	return all
}
