package docker_test

import (
	"cmp"
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"

	"gantry/internal/engine/docker"
	"gantry/internal/lab"
	"gantry/internal/labdocker"
	"gantry/internal/pod"
)

func TestMain(m *testing.M) { lab.Main(m) }

// patience is how long anything in these tests may take.
const patience = 3 * time.Minute

// plainLogs leave Docker its own and write what an attached client gets to the log's path: enough for
// tests of the engine alone.
type plainLogs struct {
	api *client.Client

	mu    sync.Mutex
	paths map[pod.Key]string // guarded by mu
}

func (l *plainLogs) Config(_ context.Context, key pod.Key, path string, _ *pod.LogBounds) (driver string, options map[string]string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.paths[key] = path
	return "json-file", nil, nil
}

// Follow attaches before the container starts, so that nothing is missed.
func (l *plainLogs) Follow(_ context.Context, key pod.Key, id string) error {
	l.mu.Lock()
	path := l.paths[key]
	delete(l.paths, key)
	l.mu.Unlock()
	if path == "" {
		return nil
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	conn, err := l.api.ContainerAttach(context.Background(), id, client.ContainerAttachOptions{Stream: true, Stdout: true, Stderr: true})
	if err != nil {
		return err
	}
	go func() {
		defer f.Close()
		defer conn.Close()
		_, _ = stdcopy.StdCopy(f, f, conn.Reader)
	}()
	return nil
}

func (*plainLogs) Reopen(context.Context, pod.Key) error { return nil }
func (*plainLogs) Close(context.Context, pod.Key) error  { return nil }

// station is an engine with a Docker Engine of its own behind it.
type station struct {
	*docker.Engine
	dockerd *labdocker.Daemon
	image   *pod.Image
	netNS   string
}

func newStation(t testing.TB, o labdocker.Options) *station {
	t.Helper()
	s := newStationOn(t, labdocker.Start(t, o))
	s.image = &pod.Image{ID: s.dockerd.Busybox()}
	return s
}

// newStationOn is a station without an image, on a Docker Engine that runs.
func newStationOn(t testing.TB, d *labdocker.Daemon) *station {
	t.Helper()
	s := &station{dockerd: d, netNS: filepath.Join(t.TempDir(), "netns")}
	s.Engine = open(t, s, docker.Options{})
	t.Cleanup(func() { _ = unix.Unmount(s.netNS, unix.MNT_DETACH) })
	return s
}

// open opens an engine on the station's daemon, as a server that starts does; o may name another endpoint.
func open(t testing.TB, s *station, o docker.Options) *docker.Engine {
	t.Helper()
	o.Endpoint, o.NetNSDir = cmp.Or(o.Endpoint, s.dockerd.Endpoint()), s.netNS
	o.Patience = cmp.Or(o.Patience, patience) // a slow daemon does not hang
	api, err := client.New(client.WithHost(o.Endpoint))
	if err != nil {
		t.Fatal(err)
	}
	o.Logs = &plainLogs{api: api, paths: make(map[pod.Key]string)}
	e, err := docker.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close(context.Background()) })
	return e
}
