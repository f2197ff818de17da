package daemon

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/containerd/errdefs"

	"gantry/internal/admin"
	"gantry/internal/config"
	"gantry/internal/dockerlog"
	"gantry/internal/engine/docker"
	"gantry/internal/keeper"
	"gantry/internal/pod"
	"gantry/internal/stats"
)

// dockerEngine makes the engine of Docker's pods and their logs, nil where no daemon is configured. The
// daemon may come up later.
func (s *server) dockerEngine(k *keeper.Client) (*docker.Engine, error) {
	o := s.opts.Docker
	if o.Endpoint == "" {
		return nil, nil
	}
	log := s.log.With("component", "docker")
	where := docker.Options{
		Endpoint: o.Endpoint, TLS: docker.TLS{CA: o.TLSCA, Cert: o.TLSCert, Key: o.TLSKey},
		PauseImage: o.PauseImage, NetNSDir: s.opts.Network.NetNSDir, Log: log,
	}
	api, err := docker.Dial(where)
	if err != nil {
		return nil, err
	}
	s.onClose("docker's logs", func(context.Context) error { return api.Close() })
	logs, err := dockerlog.New(dockerlog.Options{
		Keeper: k, API: api, Driver: dockerlog.Driver(s.opts.State), StateDir: filepath.Join(s.opts.State, "dockerlogs"),
		Follow: o.Logs == "api", Log: log,
	})
	if err != nil {
		return nil, err
	}
	s.onClose("docker's followed logs", func(context.Context) error { logs.Shutdown(); return nil })
	where.Logs = logs
	eng, err := docker.New(where)
	if err != nil {
		return nil, err
	}
	s.onClose("docker", eng.Close)
	return eng, nil
}

// mayTakeOver refuses to take over from a runtime that is at work.
func (s *server) mayTakeOver(ctx context.Context) error {
	if !s.opts.Docker.TakeOver {
		return nil
	}
	for _, socket := range []string{"/run/cri-dockerd.sock", "/var/run/cri-dockerd.sock"} {
		there, err := answers(ctx, socket)
		if err != nil {
			return fmt.Errorf("take over: %w", err)
		}
		if there {
			return fmt.Errorf("take over: cri-dockerd answers at %s: stop it first, and cri-docker.socket where systemd has one", socket)
		}
	}
	return nil
}

// foreign tells what an earlier runtime has left on Docker.
func foreign(d *docker.Engine) func(context.Context) (admin.Foreign, error) {
	if d == nil {
		return nil
	}
	return func(ctx context.Context) (admin.Foreign, error) {
		pods, containers, err := d.Foreign(ctx)
		return admin.Foreign{Pods: pods, Containers: containers}, err
	}
}

// layers ask one after the other for the size of a writable layer: each knows its own containers.
type layers []stats.Layers

func (l layers) LayerUsage(key string) (u *pod.Usage, err error) {
	for _, store := range l {
		if u, err = store.LayerUsage(key); !errdefs.IsNotFound(err) {
			return u, err
		}
	}
	return nil, err
}

// systemdCgroup is what the kubelet is told: with Docker as the default engine its daemon decides, as
// far as it can be asked.
func (s *server) systemdCgroup(ctx context.Context, d *docker.Engine) bool {
	if s.opts.Engine == config.EngineDocker && d != nil {
		systemd, err := d.SystemdCgroup(ctx)
		if err == nil {
			return systemd
		}
		s.log.Warn("docker does not say which cgroup driver it uses, the configured one is assumed", "error", err)
	}
	return s.opts.Cgroup.Driver == "systemd"
}
