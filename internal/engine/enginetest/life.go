package enginetest

import (
	"cmp"
	"context"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"

	"gantry/internal/engine"
	"gantry/internal/pod"
)

func sandboxLife(t *testing.T, b *bench) {
	s := b.create()
	info := b.findSandbox(s.spec.Key)
	if s.made.ID == "" || s.made.NetNS == "" {
		t.Errorf("made %+v; want an id and a network namespace", s.made)
	}
	if info == nil || !info.Ready || info.ID != s.made.ID || info.NetNS != s.made.NetNS {
		t.Fatalf("List shows %+v; want a ready sandbox as it was made: %+v", info, s.made)
	}
	b.must("stop sandbox", b.Engine.StopSandbox(b.ctx, s.spec.Key))
	if info := b.findSandbox(s.spec.Key); info != nil && info.Ready {
		t.Error("a stopped sandbox is listed as ready")
	}
	b.must("remove sandbox", b.Engine.RemoveSandbox(b.ctx, s.spec.Key))
	if info := b.findSandbox(s.spec.Key); info != nil {
		t.Errorf("a removed sandbox is listed: %+v", info)
	}
}

func repeats(t *testing.T, b *bench) {
	s := b.create()
	again, err := b.Engine.CreateSandbox(b.ctx, s.spec, s.files)
	b.must("create sandbox again", err)
	if again != s.made {
		t.Errorf("created again: %+v; want what there was: %+v", again, s.made)
	}
	b.must("start sandbox again", b.Engine.StartSandbox(b.ctx, s.spec.Key))

	req := b.request(s, b.Commands.Sleep)
	key := b.made(req)
	first := b.find(key)
	created, err := b.Engine.CreateContainer(b.ctx, req)
	b.must("create container again", err)
	if first == nil || created.ID != first.ID {
		t.Errorf("created again: %+v; want the container there was: %+v", created, first)
	}
	if above := s.made.CgroupPath; above != "" && !strings.HasPrefix(created.CgroupPath, above+"/") {
		t.Errorf("the container's cgroup %s is not below the sandbox's, %s", created.CgroupPath, above)
	}
	for range 2 {
		b.start(key)
	}
	for range 2 {
		b.must("remove container", b.Engine.RemoveContainer(b.ctx, key))
	}
	for range 2 {
		b.must("stop sandbox", b.Engine.StopSandbox(b.ctx, s.spec.Key))
	}
	for range 2 {
		b.must("remove sandbox", b.Engine.RemoveSandbox(b.ctx, s.spec.Key))
	}
}

func undoNothing(_ *testing.T, b *bench) {
	key := pod.NewKey()
	b.must("remove a container that never was", b.Engine.RemoveContainer(b.ctx, key))
	b.must("stop a sandbox that never was", b.Engine.StopSandbox(b.ctx, key))
	b.must("remove a sandbox that never was", b.Engine.RemoveSandbox(b.ctx, key))
	s := b.create()
	b.must("remove a sandbox that was not stopped", b.Engine.RemoveSandbox(b.ctx, s.spec.Key))
}

func unknownKeys(t *testing.T, b *bench) {
	key := pod.NewKey()
	_, startErr := b.Engine.StartContainer(b.ctx, key)
	_, execErr := b.Engine.Exec(b.ctx, key, &engine.Exec{Args: b.Commands.Exit("0")})
	for act, err := range map[string]error{
		"start":  startErr,
		"update": b.Engine.UpdateContainer(b.ctx, key, &pod.Resources{CPUShares: 100}),
		"attach": b.Engine.Attach(b.ctx, key, engine.IO{}),
		"exec":   execErr,
	} {
		if !errdefs.IsNotFound(err) {
			t.Errorf("%s of an unknown container: %v; want ErrNotFound", act, err)
		}
	}
}

func containerLife(t *testing.T, b *bench) {
	s := b.create()
	req := b.request(s, b.Commands.Sleep)
	b.cleanup(func(ctx context.Context) error { return b.Engine.RemoveContainer(ctx, req.Spec.Key) })
	created, err := b.Engine.CreateContainer(b.ctx, req)
	b.must("create container", err)
	key := req.Spec.Key
	if created.ID == "" {
		t.Errorf("created %+v; want an id", created)
	}
	if info := b.find(key); info == nil || info.State != pod.ContainerCreated || info.ID != created.ID {
		t.Fatalf("List shows %+v; want it created as %s", info, created.ID)
	}
	started, err := b.Engine.StartContainer(b.ctx, key)
	b.must("start container", err)
	info := b.find(key)
	if info == nil || info.State != pod.ContainerRunning || info.Pid <= 0 || info.Exit != nil {
		t.Fatalf("List shows %+v; want it running with a pid", info)
	}
	if pid := cmp.Or(started.Pid, created.Pid); pid != info.Pid {
		t.Errorf("it was created and started as process %d, and List shows %d", pid, info.Pid)
	}
	if path := cmp.Or(started.CgroupPath, created.CgroupPath); path != info.CgroupPath {
		t.Errorf("it was created and started in %q, and List shows %q", path, info.CgroupPath)
	}
	events := b.watch()
	b.must("kill", b.Engine.SignalContainer(b.ctx, key, engine.Signal{Name: "SIGKILL"}))
	b.exit(events, key)
	if info := b.find(key); info == nil || info.State != pod.ContainerExited || info.Exit == nil {
		t.Fatalf("List shows %+v; want it exited, and how", info)
	}
	b.must("remove container", b.Engine.RemoveContainer(b.ctx, key))
	if info := b.find(key); info != nil {
		t.Errorf("a removed container is listed: %+v", info)
	}
}

func removeKills(t *testing.T, b *bench) {
	s := b.create()
	for rule, key := range map[string]pod.Key{
		"running": b.running(s, b.Commands.Ignore("TERM")),
		"created": b.container(s, b.Commands.Sleep),
	} {
		b.must("remove a "+rule+" container", b.Engine.RemoveContainer(b.ctx, key))
		if info := b.find(key); info != nil {
			t.Errorf("a removed %s container is listed: %+v", rule, info)
		}
	}
}

func concurrent(t *testing.T, b *bench) {
	events := b.watch()
	codes := []string{"0", "1", "2", "3"}
	keys := make([]pod.Key, len(codes))
	sandboxes := make([]*sandbox, len(codes))
	for i := range codes {
		sandboxes[i] = b.newSandbox()
	}
	var wg sync.WaitGroup
	for i, code := range codes {
		wg.Go(func() {
			s := sandboxes[i]
			made, err := b.Engine.CreateSandbox(b.ctx, s.spec, s.files)
			if err != nil {
				t.Error("create sandbox:", err)
				return
			}
			s.state = &pod.Sandbox{Spec: *s.spec, ID: made.ID, State: pod.SandboxReady, NetNS: made.NetNS}
			req := b.request(s, b.Commands.Exit(code))
			keys[i] = req.Spec.Key
			if _, err := b.Engine.CreateContainer(b.ctx, req); err != nil {
				t.Error("create container:", err)
				return
			}
			if _, err := b.Engine.StartContainer(b.ctx, req.Spec.Key); err != nil {
				t.Error("start container:", err)
			}
		})
	}
	wg.Wait()
	got := make(map[pod.Key]int32)
	for !t.Failed() && len(got) < len(codes) {
		select {
		case ev := <-events:
			if ev.Exit != nil {
				got[ev.Key] = ev.Exit.Code
			}
		case <-b.ctx.Done():
			t.Errorf("exits of %d of %d containers were reported", len(got), len(codes))
		}
	}
	for i, s := range sandboxes {
		if !t.Failed() && got[keys[i]] != int32(i) {
			t.Errorf("container %d ended with %d", i, got[keys[i]])
		}
		b.must("remove container", b.Engine.RemoveContainer(b.ctx, keys[i]))
		b.must("remove sandbox", b.Engine.RemoveSandbox(b.ctx, s.spec.Key))
	}
}

func endedContext(t *testing.T, b *bench) {
	s := b.newSandbox()
	ctx, cancel := context.WithCancel(b.ctx)
	cancel()
	if _, err := b.Engine.CreateSandbox(ctx, s.spec, s.files); err == nil {
		t.Error("a sandbox was created though the context had ended")
	}
	b.must("remove sandbox", b.Engine.RemoveSandbox(b.ctx, s.spec.Key))
	if info := b.findSandbox(s.spec.Key); info != nil {
		t.Errorf("left behind: %+v", info)
	}
	s = b.create()
	req := b.request(s, b.Commands.Sleep)
	if _, err := b.Engine.CreateContainer(ctx, req); err == nil {
		t.Error("a container was created though the context had ended")
	}
	b.must("remove container", b.Engine.RemoveContainer(b.ctx, req.Spec.Key))
	if info := b.find(req.Spec.Key); info != nil {
		t.Errorf("left behind: %+v", info)
	}
}

func status(_ *testing.T, b *bench) { b.must("status", b.Engine.Status(b.ctx)) }
