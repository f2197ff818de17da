package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/labimage"
)

// server is a CRI server under measurement.
type server struct {
	name   string
	pid    int
	idle   int64 // resident set in KiB before the first pull
	images runtime.ImageServiceClient
	conn   io.Closer
	ended  chan struct{}
	end    context.CancelFunc
}

func writeCerts(dir string, r *labimage.Server) error {
	host := filepath.Join(dir, r.Host)
	if err := os.MkdirAll(host, 0o700); err != nil {
		return err
	}
	ca := filepath.Join(host, "ca.pem")
	if err := os.WriteFile(ca, r.CA, 0o600); err != nil {
		return err
	}
	toml := fmt.Sprintf("[host.%q]\ncapabilities = [\"pull\", \"resolve\"]\nca = %q\n", "https://"+r.Host, ca)
	return os.WriteFile(filepath.Join(host, "hosts.toml"), []byte(toml), 0o600)
}

func startGantry(ctx context.Context, binary, dir, certs string, sync bool) (*server, error) {
	name, when := "gantry, sync", "always"
	if !sync {
		name, when = "gantry, no sync", "never"
	}
	state := filepath.Join(dir, "state")
	return start(ctx, place{name, dir, filepath.Join(state, "gantry.sock")}, binary, "serve", "--root", filepath.Join(dir, "root"),
		"--state", state, "--listen", "unix://"+filepath.Join(state, "gantry.sock"), "--certs-dir", certs, "--network", "builtin",
		"--netns-dir", filepath.Join(dir, "netns"), "--metrics-listen", "", "--image-sync", when)
}

const containerdConfig = `version = 3
root = %q
state = %q
disabled_plugins = ["io.containerd.nri.v1.nri"]
[grpc]
address = %q
[ttrpc]
address = %q
[plugins."io.containerd.cri.v1.images"]
snapshotter = "overlayfs"
image_pull_with_sync_fs = %t
[plugins."io.containerd.cri.v1.images".registry]
config_path = %q
`

func startContainerd(ctx context.Context, binary, dir, certs string, sync bool) (*server, error) {
	name := "containerd, sync"
	if !sync {
		name = "containerd, no sync"
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	socket := filepath.Join(dir, "containerd.sock")
	config := fmt.Sprintf(containerdConfig, filepath.Join(dir, "root"), filepath.Join(dir, "state"), socket, socket+".ttrpc", sync, certs)
	file := filepath.Join(dir, "config.toml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return nil, err
	}
	return start(ctx, place{name, dir, socket}, binary, "--config", file, "--log-level", "warn")
}

// place is where a server has its files and its socket.
type place struct{ name, dir, socket string }

// start runs a server and waits until it answers.
func start(ctx context.Context, p place, binary string, args ...string) (*server, error) {
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(p.dir, "log"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	ctx, end := context.WithCancel(ctx)
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	if err = cmd.Start(); err != nil {
		end()
		return nil, fmt.Errorf("%s: %w", p.name, err)
	}
	s := &server{name: p.name, pid: cmd.Process.Pid, ended: make(chan struct{}), end: end}
	go func() {
		defer close(s.ended)
		_ = cmd.Wait()
	}()
	conn, err := grpc.NewClient("unix://"+p.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		s.stop()
		return nil, err
	}
	s.conn, s.images = conn, runtime.NewImageServiceClient(conn)
	if err = s.ready(ctx); err != nil {
		s.stop()
		text, _ := os.ReadFile(log.Name()) // what it said helps most, if it can be had
		return nil, fmt.Errorf("%s does not answer: %w\n%s", p.name, err, text)
	}
	s.idle = s.status("VmRSS")
	return s, nil
}

func (s *server) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := s.images.ListImages(ctx, &runtime.ListImagesRequest{})
		if err == nil {
			return nil
		}
		select {
		case <-s.ended:
			return fmt.Errorf("it ended: %w", err)
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
}

func (s *server) stop() {
	s.end()
	<-s.ended
	if s.conn != nil {
		_ = s.conn.Close()
	}
}
