package pod_test

import (
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"gantry/internal/pod"
)

func TestSandboxMoves(t *testing.T) {
	for _, tc := range []struct {
		name     string
		from, to pod.SandboxState
		legal    bool
	}{
		{"a pod that was made is ready", pod.SandboxCreating, pod.SandboxReady, true},
		{"a pod that failed is removed", pod.SandboxCreating, pod.SandboxRemoving, true},
		{"a pod is stopped", pod.SandboxReady, pod.SandboxNotReady, true},
		{"a stopped pod is removed", pod.SandboxNotReady, pod.SandboxRemoving, true},
		{"staying is legal", pod.SandboxNotReady, pod.SandboxNotReady, true},
		{"a stopped pod never runs again", pod.SandboxNotReady, pod.SandboxReady, false},
		{"a pod that is being removed stays so", pod.SandboxRemoving, pod.SandboxNotReady, false},
		{"a half-made pod can't be stopped", pod.SandboxCreating, pod.SandboxNotReady, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := &pod.Sandbox{State: tc.from}
			after, err := before.To(tc.to)
			if before.State != tc.from {
				t.Error("the snapshot was changed")
			}
			if !tc.legal {
				if !errdefs.IsFailedPrecondition(err) {
					t.Errorf("error %v, want a failed precondition", err)
				}
				return
			}
			if err != nil || after.State != tc.to {
				t.Errorf("%v, error %v; want %s", after, err, tc.to)
			}
		})
	}
}

func TestExited(t *testing.T) {
	at := time.Date(2026, time.March, 4, 5, 6, 7, 8, time.UTC)
	for _, tc := range []struct {
		name   string
		exit   pod.Exit
		reason string
	}{
		{"code 0 is Completed", pod.Exit{At: at}, pod.ReasonCompleted},
		{"any other code is Error", pod.Exit{At: at, Code: 1}, pod.ReasonError},
		{"an OOM kill is one", pod.Exit{At: at, Code: 137, OOMKilled: true}, pod.ReasonOOMKilled},
		{"what nobody saw is Unknown, whatever else is said", pod.Exit{At: at, Code: 255, Unknown: true, OOMKilled: true}, pod.ReasonUnknown},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := &pod.Container{State: pod.ContainerRunning, Pid: 7}
			got, err := c.Exited(tc.exit)
			if err != nil {
				t.Fatal(err)
			}
			if got.State != pod.ContainerExited || got.Pid != 0 || got.ExitCode != tc.exit.Code || got.Reason != tc.reason || !got.FinishedAt.Equal(at) {
				t.Errorf("%+v, want reason %s", got, tc.reason)
			}
		})
	}
	late := &pod.Container{State: pod.ContainerRunning, StartedAt: at.Add(time.Millisecond)}
	got, err := late.Exited(pod.Exit{At: at})
	if err != nil || !got.FinishedAt.Equal(late.StartedAt) {
		t.Errorf("an exit told to be before the start is at %v, error %v; want %v", got.FinishedAt, err, late.StartedAt)
	}
	if _, err := (&pod.Container{State: pod.ContainerRemoving}).Exited(pod.Exit{}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a container that is being removed exited: %v", err)
	}
}

func TestKeys(t *testing.T) {
	a, b := pod.NewKey(), pod.NewKey()
	if len(a) != 64 || a == b {
		t.Errorf("keys %s and %s", a, b)
	}
	if a.Short() != string(a[:13]) || pod.Key("ab").Short() != "ab" {
		t.Errorf("short forms %s and %s", a.Short(), pod.Key("ab").Short())
	}
}
