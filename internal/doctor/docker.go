package doctor

import (
	"context"
	"fmt"

	"gantry/internal/config"
	"gantry/internal/engine/docker"
)

func checkDocker(ctx context.Context, n *node) []Finding {
	c := n.Config.Docker
	if c.Endpoint == "" {
		return nil
	}
	about, err := docker.Ask(ctx, docker.Options{
		Endpoint: c.Endpoint, TLS: docker.TLS{CA: c.TLSCA, Cert: c.TLSCert, Key: c.TLSKey},
	})
	if err != nil {
		level := Warn
		if n.Config.Engine == config.EngineDocker {
			level = Fail
		}
		return one(level, err.Error(), "start dockerd, or correct docker.endpoint")
	}
	found := one(OK, fmt.Sprintf("Docker %s, API %s, answers at %s", about.Version, about.API, c.Endpoint), "")
	if own := n.Config.Cgroup.Driver; n.Config.Engine != config.EngineDocker && about.CgroupDriver != own {
		found = append(found, Finding{
			Level: Warn, Message: fmt.Sprintf("dockerd's cgroup driver is %s, that of native pods %s: the kubelet has one for all", about.CgroupDriver, own),
			Mend: `"exec-opts": ["native.cgroupdriver=` + own + `"] in /etc/docker/daemon.json, or --cgroup-driver ` + about.CgroupDriver + " and the same in the kubelet's configuration",
		})
	}
	if !about.LiveRestore {
		found = append(found, Finding{
			Level: Warn, Message: "pods on Docker end when dockerd restarts", Mend: `"live-restore": true in /etc/docker/daemon.json, systemctl reload docker`,
		})
	}
	return found
}
