// Package manifest turns a core/v1 Pod, as kubectl reads it, into what the CRI wants to hear. It is
// pure: it makes no directory and asks no server.
//
// A field is handled, or ignored with a note where it means something to a cluster only, or refused
// by name. None is dropped silently.
package manifest

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"
	"sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// AnnotationDirectory names, on a pod that `gantry run` made, the directory of its logs and volumes.
const AnnotationDirectory = "gantry.run/directory"

// AnnotationGrace is the pod's terminationGracePeriodSeconds, where its manifest has one, as a duration.
const AnnotationGrace = "gantry.run/grace"

// Options are what a manifest does not say.
type Options struct {
	UID        string // where the manifest has none
	Dir        string // the pod's directory: logs and emptyDir volumes lie below it
	MemoryDir  string // the same for emptyDir volumes with medium Memory; on a tmpfs
	ResolvConf []byte // the node's, merged with dnsConfig as dnsPolicy says
	FirstID    uint32 // of the 65536 ids of the node that a pod with hostUsers: false has
}

// Pod is what is to be run.
type Pod struct {
	Sandbox    *v1.PodSandboxConfig
	Handler    string
	Init       []Container
	Containers []Container
	Volumes    []Volume
	Grace      time.Duration // terminationGracePeriodSeconds
	// Notes say what was ignored, for the user.
	Notes []string
}

// Container is one container of the pod.
type Container struct {
	Config *v1.ContainerConfig
	Pull   core.PullPolicy
	// Sidecar is an init container that the others do not wait for.
	Sidecar bool
	// Mounted are the images among the mounts; their specs are those of Config.
	Mounted []Image
	// NonRoot refuses an image whose user is root (runAsNonRoot with no runAsUser).
	NonRoot bool
}

// Image is an image that is mounted.
type Image struct {
	Spec *v1.ImageSpec
	Pull core.PullPolicy
}

// Volume is a directory or file on the node that must be there before the containers, or an image.
type Volume struct {
	Name  string
	Path  string
	Image string          // its reference; "" is none
	Pull  core.PullPolicy // of Image
	// Empty volumes belong to the pod: they are made for it and removed with it.
	Empty bool
	// Group, if not nil, owns an empty volume (fsGroup).
	Group *int64
	// SubPaths are mounted by themselves and must be there too.
	SubPaths []string
	Type     core.HostPathType // of a hostPath: what must be there or is to be made
}

// builder carries what every part of the conversion needs.
type builder struct {
	opts    Options
	in      *core.Pod
	out     *Pod
	volumes map[string]int // index in out.Volumes
}

// Parse reads one manifest.
func Parse(data []byte, opts Options) (*Pod, error) {
	in, err := decode(data)
	if err != nil {
		return nil, err
	}
	b := &builder{opts: opts, in: in, out: &Pod{Handler: deref(in.Spec.RuntimeClassName)}, volumes: map[string]int{}}
	steps := []func() error{b.check, b.meta, b.podVolumes, b.dns, b.podSecurity, b.containers, b.leftovers}
	for _, step := range steps {
		if err := step(); err != nil {
			return nil, fmt.Errorf("pod %s: %w", in.Name, err)
		}
	}
	return b.out, nil
}

func decode(data []byte) (*core.Pod, error) {
	if docs := documents(data); docs != 1 {
		return nil, fmt.Errorf("one pod is wanted, there are %d documents", docs)
	}
	var kind meta.TypeMeta
	if err := yaml.Unmarshal(data, &kind); err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	if kind.APIVersion != "v1" || kind.Kind != "Pod" {
		return nil, fmt.Errorf("%q of %q is no pod: apiVersion v1 and kind Pod are wanted", kind.Kind, kind.APIVersion)
	}
	data, err := yaml.YAMLToJSONStrict(data)
	if err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	var in core.Pod
	unknown, err := json.UnmarshalStrict(data, &in)
	if err = errors.Join(append(unknown, err)...); err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	return &in, nil
}

// documents counts the YAML documents that hold more than comments.
func documents(data []byte) int {
	n := 0
	for _, doc := range bytes.Split(append([]byte("\n"), data...), []byte("\n---")) {
		for line := range bytes.Lines(doc) {
			line = bytes.TrimSpace(line)
			if len(line) > 0 && line[0] != '#' {
				n++
				break
			}
		}
	}
	return n
}

func (b *builder) check() error {
	switch {
	case b.in.Name == "" && b.in.GenerateName == "":
		return errors.New("metadata.name is missing")
	case len(b.in.Spec.Containers) == 0:
		return errors.New("spec.containers is empty")
	}
	names := map[string]bool{}
	for _, c := range slices.Concat(b.in.Spec.InitContainers, b.in.Spec.Containers) {
		switch {
		case c.Name == "":
			return errors.New("a container has no name")
		case c.Image == "":
			return fmt.Errorf("container %s: image is missing", c.Name)
		case names[c.Name]:
			return fmt.Errorf("two containers are named %s", c.Name)
		case strings.ContainsAny(c.Name, "/ "):
			return fmt.Errorf("container name %q has a blank or a '/'", c.Name)
		}
		names[c.Name] = true
	}
	return nil
}

func (b *builder) meta() error {
	in := b.in
	name := in.Name
	if name == "" {
		name = in.GenerateName + b.opts.UID[:min(5, len(b.opts.UID))]
	}
	uid := string(in.UID)
	if uid == "" {
		uid = b.opts.UID
	}
	namespace := in.Namespace
	if namespace == "" {
		namespace = core.NamespaceDefault
	}
	labels := map[string]string{}
	maps.Copy(labels, in.Labels)
	labels["io.kubernetes.pod.name"] = name
	labels["io.kubernetes.pod.namespace"] = namespace
	labels["io.kubernetes.pod.uid"] = uid
	annotations := map[string]string{}
	maps.Copy(annotations, in.Annotations)
	annotations[AnnotationDirectory] = b.opts.Dir
	b.out.Sandbox = &v1.PodSandboxConfig{
		Metadata:     &v1.PodSandboxMetadata{Name: name, Uid: uid, Namespace: namespace},
		Hostname:     hostname(in, name),
		LogDirectory: filepath.Join(b.opts.Dir, "logs"),
		Labels:       labels,
		Annotations:  annotations,
	}
	b.out.Grace = 30 * time.Second
	if s := in.Spec.TerminationGracePeriodSeconds; s != nil {
		b.out.Grace = time.Duration(*s) * time.Second
		annotations[AnnotationGrace] = b.out.Grace.String()
	}
	return b.ports()
}

// hostname is what the kubelet would choose: the node's on the host network, else at most 63 characters.
func hostname(in *core.Pod, name string) string {
	if in.Spec.HostNetwork {
		return ""
	}
	if in.Spec.Hostname != "" {
		return in.Spec.Hostname
	}
	return strings.TrimRight(name[:min(63, len(name))], "-.")
}

func (b *builder) ports() error {
	for _, c := range slices.Concat(b.in.Spec.InitContainers, b.in.Spec.Containers) {
		for _, p := range c.Ports {
			if b.in.Spec.HostNetwork {
				if p.HostPort != 0 && p.HostPort != p.ContainerPort {
					return fmt.Errorf("container %s: hostPort %d differs from containerPort %d on the host network", c.Name, p.HostPort, p.ContainerPort)
				}
				continue
			}
			m := &v1.PortMapping{ContainerPort: p.ContainerPort, HostPort: p.HostPort, HostIp: p.HostIP}
			switch p.Protocol {
			case "", core.ProtocolTCP:
				m.Protocol = v1.Protocol_TCP
			case core.ProtocolUDP:
				m.Protocol = v1.Protocol_UDP
			case core.ProtocolSCTP:
				m.Protocol = v1.Protocol_SCTP
			default:
				return fmt.Errorf("container %s: port %d: protocol %q is not TCP, UDP or SCTP", c.Name, p.ContainerPort, p.Protocol)
			}
			b.out.Sandbox.PortMappings = append(b.out.Sandbox.PortMappings, m)
		}
	}
	return nil
}

func deref[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}
