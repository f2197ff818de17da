package cri

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/pod"
)

// hostnames are what sethostname(2) and /etc/hosts bear; HOST_NAME_MAX is 64.
var hostnames = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?$`)

// sysctls are names below /proc/sys, in either spelling.
var sysctls = regexp.MustCompile(`^[A-Za-z0-9_-]+([./][A-Za-z0-9_-]+)*$`)

// sandboxSpec converts RunPodSandboxRequest. Keys are chosen by the backend.
func sandboxSpec(req *runtime.RunPodSandboxRequest) (*pod.SandboxSpec, error) {
	c := req.GetConfig()
	if c == nil {
		return nil, invalid("config", "is required")
	}
	if err := checkSandboxConfig(c); err != nil {
		return nil, err
	}
	if err := checkLine("runtime_handler", req.GetRuntimeHandler()); err != nil {
		return nil, err
	}
	m := c.GetMetadata()
	spec := &pod.SandboxSpec{
		Metadata: pod.Metadata{
			Name: m.GetName(), UID: m.GetUid(), Namespace: m.GetNamespace(), Attempt: m.GetAttempt(),
		},
		Handler:      req.GetRuntimeHandler(),
		Hostname:     c.GetHostname(),
		LogDirectory: c.GetLogDirectory(),
		Labels:       cloned(c.GetLabels()),
		Annotations:  cloned(c.GetAnnotations()),
	}
	var err error
	if spec.DNS, err = dns(c.GetDnsConfig()); err != nil {
		return nil, err
	}
	if spec.Ports, err = ports(c.GetPortMappings()); err != nil {
		return nil, err
	}
	if err = sandboxLinux(spec, c.GetLinux()); err != nil {
		return nil, err
	}
	return spec, nil
}

func checkSandboxConfig(c *runtime.PodSandboxConfig) error {
	m := c.GetMetadata()
	if m == nil {
		return invalid("config.metadata", "is required")
	}
	for _, n := range []struct{ field, value string }{
		{"config.metadata.name", m.GetName()},
		{"config.metadata.uid", m.GetUid()},
		{"config.metadata.namespace", m.GetNamespace()},
	} {
		if err := checkName(n.field, n.value); err != nil {
			return err
		}
	}
	if h := c.GetHostname(); h != "" && !hostnames.MatchString(h) {
		return invalid("config.hostname", "%q is not a host name of at most 64 characters", h)
	}
	if d := c.GetLogDirectory(); d != "" {
		if err := checkAbs("config.log_directory", d); err != nil {
			return err
		}
	}
	if c.GetWindows() != nil {
		return unsupported("config.windows", "this is not a Windows node")
	}
	return nil
}

func dns(d *runtime.DNSConfig) (*pod.DNS, error) {
	if d == nil {
		return nil, nil
	}
	for _, l := range []struct {
		field  string
		values []string
	}{
		{"config.dns_config.servers", d.GetServers()},
		{"config.dns_config.searches", d.GetSearches()},
		{"config.dns_config.options", d.GetOptions()},
	} {
		for _, v := range l.values {
			if v == "" || strings.ContainsAny(v, " \t") {
				return nil, invalid(l.field, "%q is not one word", v)
			}
			if err := checkLine(l.field, v); err != nil {
				return nil, err
			}
		}
	}
	return &pod.DNS{
		Servers: slices.Clone(d.GetServers()), Searches: slices.Clone(d.GetSearches()), Options: slices.Clone(d.GetOptions()),
	}, nil
}

var protocols = map[runtime.Protocol]pod.Protocol{
	runtime.Protocol_TCP:  pod.TCP,
	runtime.Protocol_UDP:  pod.UDP,
	runtime.Protocol_SCTP: pod.SCTP,
}

func ports(list []*runtime.PortMapping) ([]pod.PortMapping, error) {
	var out []pod.PortMapping
	for i, p := range list {
		field := fmt.Sprintf("config.port_mappings[%d]", i)
		proto, ok := protocols[p.GetProtocol()]
		if !ok {
			return nil, invalid(field+".protocol", "%d is not a protocol", p.GetProtocol())
		}
		if n := p.GetContainerPort(); n < 1 || n > 65535 {
			return nil, invalid(field+".container_port", "%d is not between 1 and 65535", n)
		}
		if n := p.GetHostPort(); n < 0 || n > 65535 {
			return nil, invalid(field+".host_port", "%d is not between 0 and 65535", n)
		}
		if ip := p.GetHostIp(); ip != "" {
			if _, err := netip.ParseAddr(ip); err != nil {
				return nil, invalid(field+".host_ip", "%q is not an IP address", ip)
			}
		}
		out = append(out, pod.PortMapping{
			Protocol: proto, ContainerPort: p.GetContainerPort(), HostPort: p.GetHostPort(), HostIP: p.GetHostIp(),
		})
	}
	return out, nil
}

func sandboxLinux(spec *pod.SandboxSpec, l *runtime.LinuxPodSandboxConfig) error {
	const field = "config.linux"
	spec.CgroupParent = l.GetCgroupParent()
	if slices.Contains(strings.Split(spec.CgroupParent, "/"), "..") {
		return invalid(field+".cgroup_parent", "%q leads out of its directory", spec.CgroupParent)
	}
	if err := checkLine(field+".cgroup_parent", spec.CgroupParent); err != nil {
		return err
	}
	for name, value := range l.GetSysctls() {
		if !sysctls.MatchString(name) {
			return invalid(field+".sysctls", "%q is not a sysctl", name)
		}
		if err := checkString(field+".sysctls", value); err != nil {
			return err
		}
	}
	spec.Sysctls = cloned(l.GetSysctls())
	var err error
	if spec.Resources, err = resources(field+".resources", l.GetResources()); err != nil {
		return err
	}
	if spec.Overhead, err = resources(field+".overhead", l.GetOverhead()); err != nil {
		return err
	}
	sc := l.GetSecurityContext()
	if spec.Namespaces, err = sandboxNamespaces(field+".security_context.namespace_options", sc.GetNamespaceOptions()); err != nil {
		return err
	}
	spec.Security, err = sandboxSecurity(field+".security_context", sc)
	return err
}
