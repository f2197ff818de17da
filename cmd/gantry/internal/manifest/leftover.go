package manifest

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// leftovers finds what none of the other steps looked at: it clears from a copy of the manifest
// every field that is handled, notes those that mean something to a cluster only, and refuses the rest.
func (b *builder) leftovers() error {
	if p := b.in.Spec.RestartPolicy; p != "" && p != core.RestartPolicyNever {
		b.note("restartPolicy " + string(p) + " is not kept: restarting is the kubelet's work, containers are started once")
	}
	pod := b.in.DeepCopy()
	pod.TypeMeta = meta.TypeMeta{}
	for _, f := range []*string{&pod.Name, &pod.Namespace, &pod.GenerateName} {
		*f = ""
	}
	pod.UID, pod.Labels, pod.Annotations = "", nil, nil
	var refused []string
	for _, list := range [][]core.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			name := list[i].Name
			refused = append(refused, b.sift("container "+name+": ", jsonKeys(clearContainer(list[i])), ignoredInContainer)...)
		}
	}
	refused = append(refused, b.sift("", jsonKeys(clearSpec(pod.Spec)), ignoredInSpec)...)
	refused = append(refused, b.sift("metadata.", jsonKeys(pod.ObjectMeta), ignoredInMeta)...)
	if len(refused) > 0 {
		return fmt.Errorf("not supported: %s", strings.Join(refused, ", "))
	}
	return nil
}

// Fields that a cluster, a scheduler or a kubelet reads and a single pod run by hand does not need.
var (
	ignoredInMeta = []string{"creationTimestamp", "resourceVersion", "generation", "managedFields", "ownerReferences", "finalizers", "selfLink"}
	ignoredInSpec = []string{
		"nodeName", "nodeSelector", "affinity", "tolerations", "topologySpreadConstraints", "schedulerName", "priorityClassName",
		"priority", "preemptionPolicy", "serviceAccountName", "serviceAccount", "automountServiceAccountToken", "enableServiceLinks",
		"readinessGates", "os", "subdomain",
	}
	ignoredInContainer = []string{"livenessProbe", "readinessProbe", "startupProbe", "terminationMessagePath", "terminationMessagePolicy"}
)

// sift notes the keys that are ignored and returns the others.
func (b *builder) sift(prefix string, keys, ignored []string) []string {
	var refused, noted []string
	for _, k := range keys {
		if slices.Contains(ignored, k) {
			noted = append(noted, k)
		} else {
			refused = append(refused, prefix+k)
		}
	}
	if len(noted) > 0 && prefix != "metadata." {
		b.note(prefix + "ignored: " + strings.Join(noted, ", "))
	}
	return refused
}

func (b *builder) note(s string) { b.out.Notes = append(b.out.Notes, s) }

func clearSpec(s core.PodSpec) core.PodSpec {
	s.Containers, s.InitContainers, s.Volumes = nil, nil, nil
	s.HostNetwork, s.HostPID, s.HostIPC, s.ShareProcessNamespace = false, false, false, nil
	s.RuntimeClassName, s.RestartPolicy, s.TerminationGracePeriodSeconds = nil, "", nil
	s.DNSPolicy, s.DNSConfig, s.Hostname = "", nil, ""
	s.HostUsers = nil
	if c := s.SecurityContext; c != nil {
		c.RunAsUser, c.RunAsGroup, c.RunAsNonRoot = nil, nil, nil
		c.SupplementalGroups, c.SupplementalGroupsPolicy, c.FSGroup = nil, nil, nil
		c.Sysctls, c.SeccompProfile, c.AppArmorProfile, c.SELinuxOptions = nil, nil, nil, nil
		if len(jsonKeys(c)) == 0 {
			s.SecurityContext = nil
		}
	}
	return s
}

func clearContainer(c core.Container) core.Container {
	c.Name, c.Image, c.ImagePullPolicy = "", "", ""
	c.Command, c.Args, c.WorkingDir, c.Env, c.Ports = nil, nil, "", nil, nil
	c.Stdin, c.StdinOnce, c.TTY, c.RestartPolicy = false, false, false, nil
	c.Resources.Limits, c.Resources.Requests = nil, nil
	if s := c.SecurityContext; s != nil {
		s.Privileged, s.ReadOnlyRootFilesystem, s.AllowPrivilegeEscalation = nil, nil, nil
		s.RunAsUser, s.RunAsGroup, s.RunAsNonRoot, s.Capabilities = nil, nil, nil, nil
		s.SeccompProfile, s.AppArmorProfile, s.SELinuxOptions, s.ProcMount = nil, nil, nil, nil
		if len(jsonKeys(s)) == 0 {
			c.SecurityContext = nil
		}
	}
	c.VolumeMounts = slices.DeleteFunc(c.VolumeMounts, func(m core.VolumeMount) bool { return m.SubPathExpr == "" })
	return c
}

// jsonKeys are the names of v's fields that are set, as they are written in a manifest.
func jsonKeys(v any) []string {
	data, err := json.Marshal(v)
	if err != nil {
		return []string{err.Error()}
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(data, &fields); err != nil {
		return []string{err.Error()}
	}
	for k, raw := range fields {
		if s := string(raw); s == "null" || s == "{}" || s == "[]" || s == `""` {
			delete(fields, k)
		}
	}
	return slices.Sorted(maps.Keys(fields))
}
