package main

import (
	"debug/buildinfo"
	"path/filepath"

	"gantry/internal/labdocker"
)

// docker is gantry with the pods on a Docker Engine, whose daemons are in the same cgroup.
func docker(o *options, _ *registry) (setup, error) {
	p, err := newPlace(o.dir, "docker")
	if err != nil {
		return setup{}, err
	}
	containers, api := filepath.Join(p.state, "containerd.sock"), filepath.Join(p.state, "docker.sock")
	file, err := p.write("containerd.toml", labdocker.ContainerdConfig(filepath.Join(p.dir, "containerd"),
		filepath.Join(p.state, "containerd"), containers))
	if err != nil {
		return setup{}, err
	}
	none, err := p.write("daemon.json", "{}") // the machine's own must not have a say
	if err != nil {
		return setup{}, err
	}
	command, err := p.gantry(o.gantry, "cni")
	if err != nil {
		return setup{}, err
	}
	beside := func(name string) string { return filepath.Join(filepath.Dir(o.dockerd), name) }
	return setup{
		place: p, label: "gantry on Docker", version: builtAs(o.dockerd, "github.com/moby/moby/v2"), network: "cni", turns: 2,
		helpers: []helper{
			{containers, []string{beside("containerd"), "--config", file, "--log-level", "warn"}},
			{api, []string{o.dockerd, "--host", "unix://" + api, "--data-root", filepath.Join(p.dir, "lib"), "--exec-root", filepath.Join(p.state, "exec"),
				"--pidfile", filepath.Join(p.state, "dockerd.pid"), "--config-file", none, "--containerd", containers,
				"--userland-proxy-path", beside("docker-proxy"), "--bridge", "none", "--iptables=false", "--ip6tables=false"}},
		},
		command: append(command, "--engine", "docker", "--docker-endpoint", "unix://"+api),
	}, nil
}

// builtAs is the version of a module that a Go program is built of; "" if that cannot be told.
func builtAs(binary, module string) string {
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		return ""
	}
	for _, m := range append(info.Deps, &info.Main) {
		if m.Path == module {
			return m.Version
		}
	}
	return ""
}
