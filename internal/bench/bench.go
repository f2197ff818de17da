// Package bench measures a CRI runtime from outside: what its calls take, what CPU time and memory it
// and everything it runs need, and how that grows. It speaks the CRI v1 and reads /proc and the cgroup
// that the runtime was started in, so that any runtime can be measured in the same way.
package bench

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// messageLimit is the kubelet's bound of one answer, in bytes.
const messageLimit = 16 << 20

// Target is a runtime under measurement.
type Target struct {
	Name    string // in reports
	Network string // what pods that are not on the node's network are connected by, in reports
	Runtime cri.RuntimeServiceClient
	Images  cri.ImageServiceClient
	// Cgroup accounts for everything that the runtime runs, pods included; nil: CPU time and memory
	// are not measured.
	Cgroup *Cgroup
	Daemon int // pid of the process that serves the CRI; 0 if it is not known

	path string
	conn *grpc.ClientConn
}

// Dial connects to the runtime behind a unix socket and waits until it answers or ctx ends.
func Dial(ctx context.Context, name, endpoint string) (*Target, error) {
	path := strings.TrimPrefix(endpoint, "unix://")
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(messageLimit)),
		grpc.WithConnectParams(grpc.ConnectParams{ // what is measured includes restarts
			Backoff: backoff.Config{BaseDelay: time.Millisecond, MaxDelay: 5 * time.Millisecond, Multiplier: 1}, MinConnectTimeout: 10 * time.Second,
		}))
	if err != nil {
		return nil, fmt.Errorf("client of %s: %w", endpoint, err)
	}
	t := &Target{Name: name, Runtime: cri.NewRuntimeServiceClient(conn), Images: cri.NewImageServiceClient(conn), path: path, conn: conn}
	if err = t.Await(ctx); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return t, nil
}

// Await waits until the runtime, or one that was started in its place, answers, and learns its pid.
func (t *Target) Await(ctx context.Context) (err error) {
	for {
		_, err = t.Runtime.Version(ctx, &cri.VersionRequest{}, grpc.WaitForReady(true))
		// Unavailable: it went out to the one before. Unknown: containerd 1.6 listens before it can answer.
		if c := status.Code(err); c != codes.Unavailable && c != codes.Unknown || wait(ctx, time.Millisecond) != nil {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("%s at unix://%s does not answer: %w", t.Name, t.path, err)
	}
	t.Daemon, err = listener(ctx, t.path)
	return err
}

// Close closes the connection.
func (t *Target) Close() error { return t.conn.Close() }

// Pods says what the pods of a measurement are like.
type Pods struct {
	Image        string // a reference that the runtime has, of an image with a shell
	Handler      string // RuntimeClass handler
	CgroupParent string // of every pod; "" leaves it to the runtime
	LogDir       string // log directories of pods are made below it
	Host         bool   // on the node's network
}

var number atomic.Int64

// life is how the container of a pod lives: until it is asked to end, and then no longer. It says when
// it can be asked: before that the kernel drops SIGTERM, as the process is the first of its PID namespace.
var life = []string{"sh", "-c", "trap 'exit 0' TERM; sleep 100000 & echo " + lifeLine + "; wait"}

const lifeLine = "ready"

func (p *Pods) sandbox() *cri.PodSandboxConfig {
	n := number.Add(1)
	name := fmt.Sprintf("bench-%d", n)
	uid := fmt.Sprintf("00000000-0000-4000-8000-%012x", uint64(time.Now().UnixNano())&0xffffffff0000|uint64(n)&0xffff)
	c := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Uid: uid, Namespace: "bench"},
		LogDirectory: filepath.Join(p.LogDir, uid),
		Labels:       map[string]string{"io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": "bench", "io.kubernetes.pod.uid": uid},
		DnsConfig:    &cri.DNSConfig{Servers: []string{"10.96.0.10"}, Searches: []string{"cluster.local"}},
		Linux: &cri.LinuxPodSandboxConfig{
			SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: namespaces(p.network())},
		},
	}
	if !p.Host {
		c.Hostname = name
	}
	if p.CgroupParent != "" {
		c.Linux.CgroupParent = p.CgroupParent + "/pod" + uid
	}
	return c
}

func (p *Pods) network() cri.NamespaceMode {
	if p.Host {
		return cri.NamespaceMode_NODE
	}
	return cri.NamespaceMode_POD
}

func namespaces(network cri.NamespaceMode) *cri.NamespaceOption {
	return &cri.NamespaceOption{Network: network, Pid: cri.NamespaceMode_CONTAINER, Ipc: cri.NamespaceMode_POD}
}

func (p *Pods) container(command []string, mounts ...*cri.Mount) *cri.ContainerConfig {
	return &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "main"},
		Image:    &cri.ImageSpec{Image: p.Image, UserSpecifiedImage: p.Image},
		Command:  command,
		LogPath:  "main_0.log",
		Mounts:   mounts,
		Linux: &cri.LinuxContainerConfig{
			Resources: &cri.LinuxContainerResources{CpuShares: 2, OomScoreAdj: 1000},
			SecurityContext: &cri.LinuxContainerSecurityContext{
				NamespaceOptions: namespaces(p.network()),
			},
		},
	}
}

// made is a pod that runs.
type made struct {
	sandbox, container string
	logPath            string
	config             *cri.PodSandboxConfig
}

// removeTime bounds the removal of a pod, which nobody cancels.
const removeTime = time.Minute

// remove ends a pod at once; what it was is lost.
func (t *Target) remove(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, removeTime)
	defer cancel()
	if _, err := t.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		return fmt.Errorf("%s: StopPodSandbox: %w", t.Name, err)
	}
	if _, err := t.Runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
		return fmt.Errorf("%s: RemovePodSandbox: %w", t.Name, err)
	}
	return nil
}

// launch runs a pod with one container.
func (t *Target) launch(ctx context.Context, p *Pods, command []string, mounts ...*cri.Mount) (made, error) {
	return t.begin(ctx, p, p.container(command, mounts...), untimed)
}

func untimed(_ string, call func() error) error { return call() }

// begin runs a pod and has timed make every call, by its name.
func (t *Target) begin(ctx context.Context, p *Pods, container *cri.ContainerConfig, timed func(string, func() error) error) (made, error) {
	m, err := t.hold(ctx, p, container, timed)
	if err != nil {
		return m, err
	}
	err = timed("StartContainer", func() error {
		_, failed := t.Runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: m.container})
		return failed
	})
	if err != nil {
		err = fmt.Errorf("%s: StartContainer: %w", t.Name, err)
	}
	return m, err
}

// hold runs a pod with a container that is not started.
func (t *Target) hold(ctx context.Context, p *Pods, container *cri.ContainerConfig, timed func(string, func() error) error) (made, error) {
	var m made
	sandbox := p.sandbox()
	m.config = sandbox
	m.logPath = filepath.Join(sandbox.LogDirectory, container.LogPath)
	err := timed("RunPodSandbox", func() error {
		r, err := t.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: sandbox, RuntimeHandler: p.Handler})
		m.sandbox = r.GetPodSandboxId()
		return err
	})
	if err != nil {
		return m, fmt.Errorf("%s: RunPodSandbox: %w", t.Name, err)
	}
	err = timed("CreateContainer", func() error {
		r, failed := t.Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: m.sandbox, Config: container, SandboxConfig: sandbox})
		m.container = r.GetContainerId()
		return failed
	})
	if err != nil {
		return m, fmt.Errorf("%s: CreateContainer: %w", t.Name, err)
	}
	return m, nil
}
