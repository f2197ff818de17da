package ocispec

import (
	"fmt"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"gantry/internal/pod"
)

// defaultPath is what a shell in a container finds when neither image nor client sets PATH.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

func process(r *Request) (*specs.Process, error) {
	args := r.Container.CommandLine(&r.Image)
	if len(args) == 0 {
		return nil, fmt.Errorf("command: neither the container nor the image names one: %w", errdefs.ErrInvalidArgument)
	}
	env, err := environment(r)
	if err != nil {
		return nil, err
	}
	caps, err := capabilities(&r.Container.Security, r.Node.Bounding)
	if err != nil {
		return nil, err
	}
	score := max(int(r.Container.Resources.OOMScoreAdj), r.Node.OOMScoreAdj)
	p := &specs.Process{
		Terminal:        r.Container.TTY,
		User:            r.User.oci(),
		Args:            args,
		Env:             env,
		Cwd:             workingDir(r.Container, &r.Image),
		Capabilities:    caps,
		NoNewPrivileges: r.Container.Security.NoNewPrivileges,
		OOMScoreAdj:     &score,
		ApparmorProfile: apparmorProfile(&r.Container.Security, &r.Node),
	}
	if !r.Container.Security.Privileged {
		p.SelinuxLabel = r.ProcessLabel
	}
	return p, nil
}

// WantsDefaultProfile says whether a container with this security context is confined by the node's
// default AppArmor profile. One that says nothing is, as on other runtimes, unless it is privileged.
func WantsDefaultProfile(sec *pod.Security) bool {
	if sec.AppArmor == nil {
		return !sec.Privileged
	}
	return sec.AppArmor.Kind == pod.ProfileRuntimeDefault
}

// apparmorProfile is what confines the process; "" is nothing.
func apparmorProfile(sec *pod.Security, node *Node) string {
	switch {
	case !node.AppArmor:
		return ""
	case WantsDefaultProfile(sec):
		return node.DefaultProfile
	case sec.AppArmor != nil && sec.AppArmor.Kind == pod.ProfileLocalhost:
		return sec.AppArmor.Ref
	}
	return ""
}

// environment puts the client's variables over the image's; the last of a name wins.
func environment(r *Request) ([]string, error) {
	env := []string{"PATH=" + defaultPath}
	if r.Container.TTY {
		env = append(env, "TERM=xterm")
	}
	hostname := r.Sandbox.Hostname
	if hostname == "" {
		hostname = r.Node.Hostname
	}
	env = append(env, "HOSTNAME="+hostname)
	env = append(env, r.Image.Env...)
	for _, v := range r.Container.Env {
		if v.Name == "" || strings.ContainsAny(v.Name, "=\x00") || strings.Contains(v.Value, "\x00") {
			return nil, fmt.Errorf("envs: %q is not a variable: %w", v.Name, errdefs.ErrInvalidArgument)
		}
		env = append(env, v.Name+"="+v.Value)
	}
	return last(env, func(entry string) string {
		name, _, _ := strings.Cut(entry, "=")
		return name
	}), nil
}

func workingDir(c *pod.ContainerSpec, image *pod.ImageConfig) string {
	dir := c.WorkingDir
	if dir == "" {
		dir = image.WorkingDir
	}
	return path.Join("/", dir)
}
