package cri_test

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/cri"
	"gantry/internal/pod"
)

func TestExecSync(t *testing.T) {
	var log bytes.Buffer
	m := &memory{result: pod.ExecResult{Stdout: []byte("out"), Stderr: []byte("err"), ExitCode: 7, Discarded: 5}}
	s := cri.New(cri.Options{Streams: m, Log: slog.New(slog.NewTextHandler(&log, nil))})
	res, err := s.ExecSync(t.Context(), &runtime.ExecSyncRequest{ContainerId: "c", Cmd: []string{"a", "b"}, Timeout: 3})
	if err != nil {
		t.Fatal(err)
	}
	if string(res.GetStdout()) != "out" || string(res.GetStderr()) != "err" || res.GetExitCode() != 7 {
		t.Errorf("%v", res)
	}
	wantSame(t, m.exec, []string{"a", "b"})
	wantSame(t, m.timeout, 3*time.Second)
	if !strings.Contains(log.String(), "discarded=5") {
		t.Errorf("what was cut is not in the log: %q", log.String())
	}
}

// An address stands for the full id, so that a prefix cannot come to mean another container.
func TestStreamAddresses(t *testing.T) {
	m := node()
	m.containers[0].ID = "c1-and-more"
	s := service(m)
	exec, err := s.Exec(t.Context(), &runtime.ExecRequest{ContainerId: "c1", Cmd: []string{"sh"}, Stdin: true, Tty: true})
	if err != nil {
		t.Fatal(err)
	}
	attach, err := s.Attach(t.Context(), &runtime.AttachRequest{ContainerId: "c1", Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	forward, err := s.PortForward(t.Context(), &runtime.PortForwardRequest{PodSandboxId: "a", Port: []int32{80}})
	if err != nil {
		t.Fatal(err)
	}
	for kind, url := range map[string]string{"exec": exec.GetUrl(), "attach": attach.GetUrl(), "portforward": forward.GetUrl()} {
		if !strings.Contains(url, "/"+kind+"/") {
			t.Errorf("%s at %s", kind, url)
		}
	}
	e := m.urls[0].(*runtime.ExecRequest)
	if e.GetContainerId() != "c1-and-more" || !e.GetTty() || !e.GetStdin() || m.urls[2].(*runtime.PortForwardRequest).GetPodSandboxId() != "aa11" {
		t.Errorf("%v", m.urls)
	}
}

func TestNoAddressForWhatDoesNotRun(t *testing.T) {
	s := service(node())
	if _, err := s.Exec(t.Context(), &runtime.ExecRequest{ContainerId: "c2", Cmd: []string{"sh"}, Stdout: true}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("exec in an ended container: %v", err)
	}
	if _, err := s.Attach(t.Context(), &runtime.AttachRequest{ContainerId: "none", Stdout: true}); !errdefs.IsNotFound(err) {
		t.Errorf("attach to nothing: %v", err)
	}
	if _, err := s.PortForward(t.Context(), &runtime.PortForwardRequest{PodSandboxId: "bb22"}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("port-forward to a stopped pod: %v", err)
	}
}

func TestReopenContainerLog(t *testing.T) {
	m := node()
	if _, err := service(m).ReopenContainerLog(t.Context(), &runtime.ReopenContainerLogRequest{ContainerId: "c1"}); err != nil || m.reopened != "c1" {
		t.Errorf("%v, reopened %q", err, m.reopened)
	}
}
