package cli_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"gantry/internal/crilog"
	"gantry/internal/engine"
	"gantry/internal/event"
	"gantry/internal/pod"
)

// backend is a server's memory without anything behind it. A container's command is what it does
// when it is started, a word at a time: "out:TEXT" and "err:TEXT" write a line, "exit:N" ends it;
// one that comes to the end of its words, or is a "sh", goes on until it is stopped.
type backend struct {
	mu         sync.Mutex
	pods       []*pod.Sandbox
	containers []*pod.Container
	images     []*pod.Image
}

func notFound(kind, id string) error { return fmt.Errorf("%s %s: %w", kind, id, errdefs.ErrNotFound) }

func (b *backend) RunPod(_ context.Context, spec *pod.SandboxSpec) (string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if spec.Handler != "" && spec.Handler != "crun" {
		return "", fmt.Errorf("runtime handler %q is not configured: %w", spec.Handler, errdefs.ErrInvalidArgument)
	}
	id := string(pod.NewKey())
	b.pods = append(b.pods, &pod.Sandbox{
		Spec: *spec, ID: id, Engine: "native", State: pod.SandboxReady, CreatedAt: time.Now(), Network: &pod.Network{IPs: []string{"192.0.2.7"}},
	})
	return id, nil
}

func (b *backend) StopPod(ctx context.Context, id string) error {
	for _, c := range b.Containers(ctx) {
		if c.SandboxID == id {
			if err := b.StopContainer(ctx, c.ID, 0); err != nil {
				return err
			}
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, p := range b.pods {
		if p.ID == id {
			n := *p
			n.State, n.Network = pod.SandboxNotReady, nil
			b.pods[i] = &n
		}
	}
	return nil
}

func (b *backend) RemovePod(_ context.Context, id string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pods = slices.DeleteFunc(b.pods, func(p *pod.Sandbox) bool { return p.ID == id })
	b.containers = slices.DeleteFunc(b.containers, func(c *pod.Container) bool { return c.SandboxID == id })
	return nil
}

func (b *backend) Pod(_ context.Context, id string) (*pod.Sandbox, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range b.pods {
		if strings.HasPrefix(p.ID, id) {
			return p, nil
		}
	}
	return nil, notFound("pod", id)
}

func (b *backend) Pods(context.Context) []*pod.Sandbox {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.pods)
}

func (b *backend) CreateContainer(ctx context.Context, podID string, spec *pod.ContainerSpec) (string, error) {
	img, err := b.Image(ctx, spec.ImageID)
	if err != nil {
		return "", err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	id := string(pod.NewKey())
	b.containers = append(b.containers, &pod.Container{
		Spec: *spec, ID: id, SandboxID: podID, ImageRef: img.ID, State: pod.ContainerCreated, CreatedAt: time.Now(),
	})
	return id, nil
}

// change replaces a container by what f makes of a copy.
func (b *backend) change(id string, f func(*pod.Container)) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, c := range b.containers {
		if c.ID == id {
			n := *c
			f(&n)
			b.containers[i] = &n
			return nil
		}
	}
	return notFound("container", id)
}

func exited(code int32) func(*pod.Container) {
	return func(c *pod.Container) {
		if c.State == pod.ContainerExited {
			return
		}
		c.State, c.ExitCode, c.FinishedAt, c.Reason = pod.ContainerExited, code, time.Now(), pod.ReasonCompleted
		if code != 0 {
			c.Reason = pod.ReasonError
		}
	}
}

var echo = regexp.MustCompile(`echo (\w+)`)

func (b *backend) StartContainer(ctx context.Context, id string) error {
	c, err := b.Container(ctx, id)
	if err != nil {
		return err
	}
	if err := b.change(id, func(c *pod.Container) { c.State, c.StartedAt = pod.ContainerRunning, time.Now() }); err != nil {
		return err
	}
	var log []byte
	after := func(*pod.Container) {}
	for i, word := range c.Spec.Command {
		if word == "sh" { // what a shell echoes is all that can be known of it
			for _, said := range echo.FindAllStringSubmatch(strings.Join(c.Spec.Command[i:], " "), -1) {
				log = crilog.Format(log, time.Now(), crilog.Stdout, []byte(said[1]+"\n"))
			}
			break
		}
		verb, text, _ := strings.Cut(word, ":")
		switch verb {
		case "out":
			log = crilog.Format(log, time.Now(), crilog.Stdout, []byte(text+"\n"))
		case "err":
			log = crilog.Format(log, time.Now(), crilog.Stderr, []byte(text+"\n"))
		case "exit":
			code, err := strconv.ParseInt(text, 10, 32)
			if err != nil {
				return fmt.Errorf("%s: %w", word, errdefs.ErrInvalidArgument)
			}
			after = exited(int32(code))
		default:
			return fmt.Errorf("start %s: executable not found: %w", word, errdefs.ErrInvalidArgument)
		}
	}
	if err := os.MkdirAll(filepath.Dir(c.Spec.LogPath), 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(c.Spec.LogPath, log, 0o600); err != nil {
		return err
	}
	return b.change(id, after)
}

func (b *backend) StopContainer(_ context.Context, id string, _ time.Duration) error {
	return b.change(id, exited(143))
}

func (b *backend) RemoveContainer(_ context.Context, id string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.containers = slices.DeleteFunc(b.containers, func(c *pod.Container) bool { return c.ID == id })
	return nil
}

func (b *backend) UpdateContainer(context.Context, string, *pod.Resources) error { return nil }

func (b *backend) Container(_ context.Context, id string) (*pod.Container, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range b.containers {
		if strings.HasPrefix(c.ID, id) {
			return c, nil
		}
	}
	return nil, notFound("container", id)
}

func (b *backend) Containers(context.Context) []*pod.Container {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.containers)
}

func (b *backend) ContainerStats(context.Context, string) (*pod.Stats, error) {
	return &pod.Stats{At: time.Now(), CPUUsage: 1500 * time.Millisecond, MemoryWorkingSet: 2_500_000}, nil
}

func (b *backend) PodStats(ctx context.Context, id string) (*pod.Stats, error) {
	return b.ContainerStats(ctx, id)
}

func (b *backend) ContainerMetrics(context.Context, string) (*pod.Metrics, error) {
	return &pod.Metrics{}, nil
}

func (b *backend) PodMetrics(context.Context, string) (*pod.Metrics, error) {
	return &pod.Metrics{}, nil
}

func (b *backend) UpdatePod(context.Context, string, *pod.Resources, *pod.Resources) error {
	return nil
}

// Events knows of what there is, as if it had just happened.
func (b *backend) Events(since time.Time) *event.Subscription {
	l := event.New(event.Options{})
	b.mu.Lock()
	defer b.mu.Unlock()
	tell := func(kind event.Kind, id string, sb *pod.Sandbox, containers ...*pod.Container) {
		l.Publish(func() event.Event { return event.Event{Kind: kind, ID: id, Sandbox: sb, Containers: containers} })
	}
	for _, p := range b.pods {
		tell(event.Created, p.ID, p)
		for _, c := range b.containers {
			if c.SandboxID == p.ID {
				tell(event.Created, c.ID, p, c)
			}
			if c.SandboxID == p.ID && c.State == pod.ContainerExited {
				tell(event.Stopped, c.ID, p, c)
				tell(event.Deleted, c.ID, p)
			}
		}
	}
	return l.Subscribe(since)
}

func (b *backend) ExecSync(context.Context, string, []string, time.Duration) (*pod.ExecResult, error) {
	return &pod.ExecResult{}, nil
}

// Exec knows "echo", "true", "fail CODE" and "cat"; anything else is not found.
func (b *backend) Exec(_ context.Context, _ string, req *engine.Exec) (int32, error) {
	switch req.Args[0] {
	case "echo":
		_, err := fmt.Fprintln(req.IO.Stdout, strings.Join(req.Args[1:], " "))
		return 0, err
	case "true":
		return 0, nil
	case "fail":
		_, _ = fmt.Fprintln(req.IO.Stderr, "failed as told")
		code, err := strconv.ParseInt(req.Args[1], 10, 32)
		return int32(code), err
	case "cat":
		_, err := io.Copy(req.IO.Stdout, req.IO.Stdin)
		return 0, err
	}
	return 0, fmt.Errorf("%s: executable not found: %w", req.Args[0], errdefs.ErrInvalidArgument)
}

// Attach greets and ends the container.
func (b *backend) Attach(_ context.Context, id string, s engine.IO) error {
	_, err := fmt.Fprintln(s.Stdout, "attached")
	if err != nil {
		return err
	}
	return b.change(id, exited(5))
}

func (b *backend) PortForward(_ context.Context, _ string, port int32, stream io.ReadWriteCloser) error {
	_, err := fmt.Fprintf(stream, "port %d\n", port)
	return err
}

func (b *backend) ReopenLog(context.Context, string) error { return nil }

// PullImage has every image but those named absent.
func (b *backend) PullImage(_ context.Context, _ string, p *pod.Pull) (string, error) {
	if strings.Contains(p.Ref, "absent") {
		return "", notFound("image", p.Ref)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, img := range b.images {
		if slices.Contains(img.Tags, p.Ref) {
			return img.ID, nil
		}
	}
	id := "sha256:" + string(pod.NewKey())
	b.images = append(b.images, &pod.Image{ID: id, Tags: []string{p.Ref}, Size: 1_234_567, User: "0", Pulled: time.Now()})
	return id, nil
}

func (b *backend) Image(_ context.Context, ref string) (*pod.Image, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, img := range b.images {
		if img.ID == ref || slices.Contains(img.Tags, ref) {
			return img, nil
		}
	}
	return nil, notFound("image", ref)
}

func (b *backend) ListImages(context.Context) ([]*pod.Image, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.images), nil
}

func (b *backend) RemoveImage(_ context.Context, ref string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.images = slices.DeleteFunc(b.images, func(i *pod.Image) bool { return i.ID == ref || slices.Contains(i.Tags, ref) })
	return nil
}

func (b *backend) ImageUsage(context.Context) (images, layers []pod.Usage, err error) {
	return nil, nil, nil
}

func (b *backend) Status(context.Context) (*pod.NodeStatus, error) {
	return &pod.NodeStatus{Handlers: []string{"", "crun"}, Network: fmt.Errorf("no configuration: %w", errdefs.ErrUnavailable)}, nil
}
