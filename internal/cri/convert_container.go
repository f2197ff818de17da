package cri

import (
	"fmt"
	"path"
	"slices"
	"strings"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/pod"
)

// containerSpec converts CreateContainerRequest. The keys, of the container and of its sandbox,
// are chosen by the backend.
func containerSpec(req *runtime.CreateContainerRequest) (*pod.ContainerSpec, error) {
	c := req.GetConfig()
	if c == nil {
		return nil, invalid("config", "is required")
	}
	if req.GetSandboxConfig() == nil {
		return nil, invalid("sandbox_config", "is required")
	}
	if err := checkContainerConfig(c); err != nil {
		return nil, err
	}
	spec := &pod.ContainerSpec{
		Name:        c.GetMetadata().GetName(),
		Attempt:     c.GetMetadata().GetAttempt(),
		Command:     slices.Clone(c.GetCommand()),
		Args:        slices.Clone(c.GetArgs()),
		WorkingDir:  c.GetWorkingDir(),
		Labels:      cloned(c.GetLabels()),
		Annotations: cloned(c.GetAnnotations()),
		Stdin:       c.GetStdin(),
		StdinOnce:   c.GetStdinOnce(),
		TTY:         c.GetTty(),
	}
	var err error
	if spec.ImageID, err = imageName("config.image", c.GetImage()); err != nil {
		return nil, err
	}
	if spec.ImageName = c.GetImage().GetUserSpecifiedImage(); spec.ImageName == "" {
		spec.ImageName = spec.ImageID
	}
	if err = logPath(spec, c.GetLogPath(), req.GetSandboxConfig().GetLogDirectory()); err != nil {
		return nil, err
	}
	if spec.Env, err = environment("config.envs", c.GetEnvs()); err != nil {
		return nil, err
	}
	if spec.Mounts, err = mounts("config.mounts", c.GetMounts()); err != nil {
		return nil, err
	}
	if spec.Devices, err = devices("config.devices", c.GetDevices()); err != nil {
		return nil, err
	}
	if spec.CDIDevices, err = cdiDevices("config.CDI_devices", c.GetCDIDevices()); err != nil {
		return nil, err
	}
	if spec.StopSignal, err = stopSignal("config.stop_signal", c.GetStopSignal()); err != nil {
		return nil, err
	}
	return spec, containerLinux(spec, c.GetLinux())
}

func checkContainerConfig(c *runtime.ContainerConfig) error {
	if c.GetMetadata() == nil {
		return invalid("config.metadata", "is required")
	}
	if err := checkName("config.metadata.name", c.GetMetadata().GetName()); err != nil {
		return err
	}
	if err := checkStrings("config.command", c.GetCommand()); err != nil {
		return err
	}
	if err := checkStrings("config.args", c.GetArgs()); err != nil {
		return err
	}
	if err := checkString("config.working_dir", c.GetWorkingDir()); err != nil {
		return err
	}
	if c.GetStdinOnce() && !c.GetStdin() {
		return invalid("config.stdin_once", "needs stdin")
	}
	if c.GetWindows() != nil {
		return unsupported("config.windows", "this is not a Windows node")
	}
	return nil
}

// logPath joins the container's log to its sandbox's directory. Without either nothing is logged.
func logPath(spec *pod.ContainerSpec, name, dir string) error {
	if err := checkBelow("config.log_path", name); err != nil {
		return err
	}
	if dir != "" {
		if err := checkAbs("sandbox_config.log_directory", dir); err != nil {
			return err
		}
	}
	spec.LogName = name
	if name != "" && dir != "" {
		spec.LogPath = path.Join(dir, name)
		if strings.HasSuffix(name, "/") || spec.LogPath == path.Clean(dir) {
			return invalid("config.log_path", "%q does not name a file", name)
		}
	}
	return nil
}

func environment(field string, list []*runtime.KeyValue) ([]pod.Var, error) {
	var out []pod.Var
	for i, kv := range list {
		f := fmt.Sprintf("%s[%d]", field, i)
		if k := kv.GetKey(); k == "" || strings.ContainsRune(k, '=') {
			return nil, invalid(f+".key", "%q is not the name of a variable", k)
		}
		if err := checkString(f+".key", kv.GetKey()); err != nil {
			return nil, err
		}
		if err := checkString(f+".value", string(kv.GetValue())); err != nil {
			return nil, err
		}
		out = append(out, pod.Var{Name: kv.GetKey(), Value: string(kv.GetValue())})
	}
	return out, nil
}

func containerLinux(spec *pod.ContainerSpec, l *runtime.LinuxContainerConfig) error {
	r, err := resources("config.linux.resources", l.GetResources())
	if err != nil {
		return err
	}
	if r != nil {
		spec.Resources = *r
	}
	const field = "config.linux.security_context"
	sc := l.GetSecurityContext()
	if spec.Namespaces, err = namespaces(field+".namespace_options", sc.GetNamespaceOptions()); err != nil {
		return err
	}
	spec.Security, err = containerSecurity(field, sc)
	return err
}
