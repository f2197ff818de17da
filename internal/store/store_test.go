package store_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"gantry/internal/pod"
	"gantry/internal/store"
)

func open(t *testing.T, dir, boot string) *store.Store {
	t.Helper()
	s, err := store.Open(dir, boot)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func sandbox(key pod.Key) *pod.Sandbox {
	return &pod.Sandbox{
		Spec:  pod.SandboxSpec{Key: key, Metadata: pod.Metadata{Name: "web", UID: "u", Namespace: "default"}},
		ID:    string(key),
		State: pod.SandboxReady,
	}
}

func container(key pod.Key) *pod.Container {
	return &pod.Container{
		Spec:      pod.ContainerSpec{Key: key, Name: "nginx", Args: []string{"-g", "daemon off;"}},
		State:     pod.ContainerExited,
		ExitCode:  7,
		CreatedAt: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
	}
}

func TestRecordsComeBackAsWritten(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, "boot-1")
	if err := errors.Join(s.PutPod(sandbox("p")), s.PutContainer(container("c"))); err != nil {
		t.Fatal(err)
	}
	l, err := open(t, dir, "boot-1").Load()
	if err != nil {
		t.Fatal(err)
	}
	want := &store.Loaded{Pods: []store.Pod{{Sandbox: sandbox("p")}}, Containers: []store.Container{{Container: container("c")}}}
	if d := cmp.Diff(want, l); d != "" {
		t.Error(d)
	}
	l, err = open(t, dir, "boot-2").Load()
	if err != nil || !l.Pods[0].OldBoot || !l.Containers[0].OldBoot {
		t.Errorf("records of another boot are not marked: %+v, %v", l, err)
	}
	if err := errors.Join(s.DeletePod("p"), s.DeletePod("p"), s.DeleteContainer("c"), s.DeleteContainer("never")); err != nil {
		t.Fatal(err)
	}
	if l, _ := s.Load(); len(l.Pods)+len(l.Containers) != 0 {
		t.Errorf("deleted records are back: %+v", l)
	}
}

func TestWhatIsNoRecordIsSetAside(t *testing.T) {
	for name, content := range map[string]string{
		"empty file":                      "",
		"truncated record":                `{"version":1,"boot":"b","pod":{"spec":{"key":"k"`,
		"garbage":                         "\x00\x01\x02",
		"format of a future version":      `{"version":99,"boot":"b","pod":{"spec":{"key":"k"},"state":"ready"}}`,
		"no version":                      `{"pod":{"spec":{"key":"k"},"state":"ready"}}`,
		"neither pod nor container":       `{"version":1,"boot":"b"}`,
		"record under another's name":     `{"version":1,"boot":"b","pod":{"spec":{"key":"other"},"state":"ready"}}`,
		"container among the pods":        `{"version":1,"boot":"b","container":{"spec":{"key":"k"},"state":"exited"}}`,
		"unknown state":                   `{"version":1,"boot":"b","pod":{"spec":{"key":"k"},"state":"dancing"}}`,
		"a second record after the first": `{"version":1,"boot":"b","pod":{"spec":{"key":"k"},"state":"ready"}}{}`,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir, "b")
			if err := s.PutPod(sandbox("good")); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "pods", "k.json"), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			l, err := s.Load()
			if err != nil {
				t.Fatal(err)
			}
			if len(l.Pods) != 1 || len(l.SetAside) != 1 || l.SetAside[0].Reason == nil {
				t.Fatalf("loaded %+v; want the good record and one set aside", l)
			}
			if kept, err := os.ReadFile(l.SetAside[0].Path); err != nil || string(kept) != content {
				t.Errorf("set aside %q, %v; want the bytes as they were", kept, err)
			}
			if l, err := s.Load(); err != nil || len(l.SetAside) != 0 {
				t.Errorf("set aside twice: %+v, %v", l, err)
			}
		})
	}
}

func TestInterruptedWriteLeavesNoTrace(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, "b")
	tmp := filepath.Join(dir, "pods", ".tmp-p.json-123")
	if err := os.WriteFile(tmp, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := s.Load()
	if err != nil || len(l.SetAside) != 0 {
		t.Fatalf("%+v, %v", l, err)
	}
	if _, err := os.Stat(tmp); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("temporary file is still there: %v", err)
	}
}

func TestKeysThatArePathsAreRefused(t *testing.T) {
	s := open(t, t.TempDir(), "b")
	for _, key := range []pod.Key{"", "..", "../x", "a/b", ".hidden"} {
		if err := s.PutPod(sandbox(key)); !errdefs.IsInvalidArgument(err) {
			t.Errorf("key %q: %v; want ErrInvalidArgument", key, err)
		}
	}
}

func TestBootID(t *testing.T) {
	id, err := store.BootID()
	if err != nil || len(id) != 36 {
		t.Errorf("boot id %q, %v", id, err)
	}
}
