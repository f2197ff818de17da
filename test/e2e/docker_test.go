package e2e_test

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/labdocker"
	"gantry/test/node"
)

// mixed is a server with both engines, beside a Docker Engine that has its bridge and its firewall rules
// as it has by default, and a pod on each, of one image that was pulled once.
type mixed struct {
	*node.Node
	dockerd    *labdocker.Daemon
	pods       map[string]string // by handler; "" is native
	containers map[string]string
}

const (
	onNative = ""
	onDocker = "docker"
)

func newMixed(t *testing.T) *mixed {
	t.Helper()
	m := &mixed{
		dockerd: labdocker.Start(t, labdocker.Options{Network: true, LiveRestore: true}),
		pods:    map[string]string{}, containers: map[string]string{},
	}
	m.Node = node.Start(t, node.Options{Flags: []string{"--docker-endpoint", m.dockerd.Endpoint()}})
	image := m.Pull(node.Busybox(t))
	for _, handler := range []string{onNative, onDocker} {
		m.launch(handler, image)
	}
	return m
}

// serves serves its host name over HTTP and counts.
const serves = `mkdir /www; hostname > /www/index.html; hostname > /www/big; httpd -p 80 -h /www; ` + counts

func (m *mixed) launch(handler, image string) {
	m.T().Helper()
	s := m.Sandbox("on-" + cmp.Or(handler, "native"))
	r, err := m.Runtime.RunPodSandbox(m.Context(), &runtimeapi.RunPodSandboxRequest{Config: s, RuntimeHandler: handler})
	if err != nil {
		m.T().Fatalf("run a pod on %q: %v", handler, err)
	}
	m.pods[handler] = r.PodSandboxId
	m.containers[handler] = m.Create(r.PodSandboxId, node.Container("main", image, "sh", "-c", serves), s)
	m.StartContainer(m.containers[handler])
}

// work checks that a pod does all that pods do.
func (m *mixed) work(t *testing.T, handler string) {
	t.Helper()
	n, id := m.For(t), m.containers[handler]
	if s := n.Container(id); s.State != runtimeapi.ContainerState_CONTAINER_RUNNING || s.ImageId == "" {
		t.Errorf("on %q: the container is %v, of image %q", handler, s.State, s.ImageId)
	}
	host := strings.TrimSpace(n.Exec(id, "hostname"))
	seen := logLines(n, n.Container(id).LogPath) // it serves before it counts
	n.Eventually("the log of "+host+" goes on", func() bool { return logLines(n, n.Container(id).LogPath) > seen })
	if page := n.Exec(id, "wget", "-qO-", "http://"+n.Pod(m.pods[handler]).Network.Ip+"/"); strings.TrimSpace(page) != host {
		t.Errorf("on %q: its server says %q to itself; want %s", handler, page, host)
	}
	conn := forwardConnection(t, n, m.pods[handler])
	if got, refused := fetch(t, conn, 80, 1); got != fmt.Sprintf("%x", sha256.Sum256([]byte(host+"\n"))) {
		t.Errorf("on %q: through a forwarded port came something else: %s", handler, refused)
	}
	stats, err := n.Runtime.ContainerStats(n.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: id})
	if err != nil || stats.Stats.GetMemory().GetWorkingSetBytes().GetValue() == 0 {
		t.Errorf("on %q: statistics %v, %v", handler, stats, err)
	}
}

func TestTwoEnginesInOneServer(t *testing.T) {
	m := newMixed(t)
	list, err := m.Runtime.ListContainers(m.Context(), &runtimeapi.ListContainersRequest{})
	if err != nil || len(list.Containers) != 2 {
		t.Fatalf("list: %v, %v; want both containers", list, err)
	}
	for _, handler := range []string{onNative, onDocker} {
		m.work(t, handler)
	}
	if names := m.dockerd.Docker("ps", "--format", "{{.Names}}"); strings.Count(names, "k8s_") != 2 {
		t.Errorf("docker ps shows %q; want the pause container and the container by dockershim's names", names)
	}
	// Each reaches the other: dockerd's rules are not in the way.
	native, onDockerIP := m.Pod(m.pods[onNative]).Network.Ip, m.Pod(m.pods[onDocker]).Network.Ip
	m.Exec(m.containers[onNative], "wget", "-qO-", "http://"+onDockerIP+"/")
	m.Exec(m.containers[onDocker], "wget", "-qO-", "http://"+native+"/")

	m.Kill()
	m.Restart()
	for _, handler := range []string{onNative, onDocker} {
		m.work(t, handler)
		m.RemovePod(m.pods[handler])
	}
	if left := m.dockerd.Docker("ps", "-aq"); left != "" {
		t.Errorf("docker has containers left: %s", left)
	}
}

func TestNativePodsDoNotMindWhatDockerDoes(t *testing.T) {
	m := newMixed(t)
	m.dockerd.Hang()
	began := time.Now()
	_, err := m.Runtime.ExecSync(m.Context(), &runtimeapi.ExecSyncRequest{ContainerId: m.containers[onDocker], Cmd: []string{"true"}})
	if status.Code(err) != codes.Unavailable || !strings.Contains(status.Convert(err).Message(), "hangs") {
		t.Errorf("exec while docker hangs: %v; want Unavailable, and why", err)
	}
	if took := time.Since(began); took > 25*time.Second {
		t.Errorf("it took %v to say so", took)
	}
	m.says(t, "hangs")
	m.work(t, onNative)
	m.dockerd.Resume()
	m.says(t, "ready")
	m.work(t, onDocker)

	m.dockerd.Kill()
	m.says(t, "docker at")
	m.work(t, onNative)
	m.dockerd.Restart()
	m.says(t, "ready")
	m.work(t, onDocker)
	for _, handler := range []string{onNative, onDocker} {
		m.RemovePod(m.pods[handler])
	}
}

// says waits until Status says something of Docker.
func (m *mixed) says(t *testing.T, what string) {
	t.Helper()
	m.Eventually("status says of docker: "+what, func() bool {
		r, err := m.Runtime.Status(m.Context(), &runtimeapi.StatusRequest{Verbose: true})
		return err == nil && strings.Contains(r.Info["engine.docker"], what)
	})
}
