package native_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gantry/internal/engine"
	"gantry/internal/pod"
)

// testPod is a sandbox on a station.
type testPod struct {
	*station
	t     *testing.T
	spec  pod.SandboxSpec
	files engine.Files
	made  engine.Made
}

// newPod makes a sandbox and removes it when the test ends.
func (s *station) newPod(t *testing.T, changes ...func(*pod.SandboxSpec)) *testPod {
	t.Helper()
	p := &testPod{station: s, t: t, spec: pod.SandboxSpec{
		Key: pod.NewKey(), Hostname: "web-0", CgroupParent: s.parent,
		Metadata:   pod.Metadata{Name: "web-0", UID: "6d0a", Namespace: "shop"},
		Namespaces: pod.Namespaces{Network: pod.NamespacePod, PID: pod.NamespaceContainer, IPC: pod.NamespacePod},
	}}
	for _, change := range changes {
		change(&p.spec)
	}
	p.files = engine.Files{ResolvConf: p.file("resolv.conf", "nameserver 192.0.2.7\n"), Hostname: p.file("hostname", "web-0\n")}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := s.RemoveSandbox(ctx, p.spec.Key); err != nil {
			t.Errorf("remove sandbox: %v", err)
		}
	})
	made, err := s.CreateSandbox(t.Context(), &p.spec, p.files)
	if err != nil {
		t.Fatal(err)
	}
	p.made = made
	return p
}

func (p *testPod) file(name, content string) string {
	p.t.Helper()
	path := filepath.Join(p.t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		p.t.Fatal(err)
	}
	return path
}

func (p *testPod) request(script string, changes ...func(*pod.ContainerSpec)) *engine.Create {
	key := pod.NewKey()
	spec := &pod.ContainerSpec{
		Key: key, Sandbox: p.spec.Key, Name: "main", ImageID: p.image.ID, Command: []string{"/bin/sh", "-c", script},
		Namespaces: p.spec.Namespaces, LogPath: filepath.Join(p.t.TempDir(), "log"),
	}
	for _, change := range changes {
		change(spec)
	}
	return &engine.Create{Spec: spec, Sandbox: &pod.Sandbox{Spec: p.spec, ID: p.made.ID, NetNS: p.made.NetNS}, Files: p.files, Image: p.image}
}

// start runs a container and removes it when the test ends.
func (p *testPod) start(req *engine.Create) engine.Created {
	p.t.Helper()
	p.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := p.RemoveContainer(ctx, req.Spec.Key); err != nil {
			p.t.Errorf("remove container: %v", err)
		}
	})
	created, err := p.CreateContainer(p.t.Context(), req)
	if err != nil {
		p.t.Fatal(err)
	}
	if _, err := p.StartContainer(p.t.Context(), req.Spec.Key); err != nil {
		p.t.Fatal(err)
	}
	return created
}

// run runs a container to its end and returns what it logged.
func (p *testPod) run(script string, changes ...func(*pod.ContainerSpec)) (string, pod.Exit) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
	events, err := p.Watch(ctx)
	if err != nil {
		p.t.Fatal(err)
	}
	req := p.request(script, changes...)
	p.start(req)
	for ev := range events {
		if ev.Key == req.Spec.Key && ev.Exit != nil {
			return p.logged(req), *ev.Exit
		}
	}
	p.t.Fatalf("the container did not end: %s", p.logged(req))
	return "", pod.Exit{}
}

// logged is the text of a container's log, without stamps and tags.
func (p *testPod) logged(req *engine.Create) string {
	p.t.Helper()
	data, err := os.ReadFile(req.Spec.LogPath)
	if err != nil {
		p.t.Fatal(err)
	}
	var text strings.Builder
	for line := range strings.Lines(string(data)) {
		if fields := strings.SplitN(line, " ", 4); len(fields) == 4 {
			text.WriteString(fields[3])
		}
	}
	return strings.TrimSpace(text.String())
}

// exec runs a command in a container and returns what it wrote to both streams.
func (p *testPod) exec(key pod.Key, args ...string) (string, int32) {
	p.t.Helper()
	var out strings.Builder
	code, err := p.Exec(p.t.Context(), key, &engine.Exec{Args: args, IO: engine.IO{Stdout: &out}})
	if err != nil {
		p.t.Fatalf("exec %v: %v", args, err)
	}
	return strings.TrimSpace(out.String()), code
}
