package native_test

import (
	"context"
	"testing"
	"time"

	"gantry/internal/engine"
	"gantry/internal/pod"
)

// BenchmarkPod measures the life of a pod with one container, without a network, by step.
func BenchmarkPod(b *testing.B) {
	for _, runtime := range []string{"crun", "runc"} {
		b.Run(runtime, func(b *testing.B) {
			s := newStation(b, runtime)
			spent := make(map[string]time.Duration)
			for b.Loop() {
				onePod(b, s, spent)
			}
			for step, d := range spent {
				b.ReportMetric(float64(d.Microseconds())/1000/float64(b.N), step+"-ms")
			}
		})
	}
}

func onePod(b *testing.B, s *station, spent map[string]time.Duration) {
	b.Helper()
	ctx := b.Context()
	spec := &pod.SandboxSpec{
		Key: pod.NewKey(), Hostname: "web-0", CgroupParent: s.parent,
		Namespaces: pod.Namespaces{Network: pod.NamespacePod, PID: pod.NamespaceContainer, IPC: pod.NamespacePod},
	}
	c := &pod.ContainerSpec{
		Key: pod.NewKey(), Sandbox: spec.Key, ImageID: s.image.ID, Command: []string{"/bin/sleep", "1000"},
		Namespaces: spec.Namespaces,
		Security:   pod.Security{Seccomp: &pod.Profile{Kind: pod.ProfileRuntimeDefault}},
	}
	files := engine.Files{ResolvConf: "/etc/resolv.conf"}
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"sandbox", func(ctx context.Context) error { _, err := s.CreateSandbox(ctx, spec, files); return err }},
		{"create", func(ctx context.Context) error {
			_, err := s.CreateContainer(ctx, &engine.Create{Spec: c, Sandbox: &pod.Sandbox{Spec: *spec}, Files: files, Image: s.image})
			return err
		}},
		{"start", func(ctx context.Context) error { _, err := s.StartContainer(ctx, c.Key); return err }},
		{"exec", func(ctx context.Context) error {
			_, err := s.Exec(ctx, c.Key, &engine.Exec{Args: []string{"/bin/true"}})
			return err
		}},
		{"remove", func(ctx context.Context) error { return s.RemoveContainer(ctx, c.Key) }},
		{"removesandbox", func(ctx context.Context) error { return s.RemoveSandbox(ctx, spec.Key) }},
	} {
		began := time.Now()
		if err := step.do(ctx); err != nil {
			b.Fatalf("%s: %v", step.name, err)
		}
		spent[step.name] += time.Since(began)
	}
}
