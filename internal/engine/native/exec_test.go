package native_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"gantry/internal/engine"
	"gantry/internal/pod"
)

func TestExecHasTheContainersIdentity(t *testing.T) {
	for _, runtime := range []string{"crun", "runc"} {
		p := newStation(t, runtime).newPod(t)
		uid := int64(1234)
		req := p.request("exec sleep 1000", func(c *pod.ContainerSpec) {
			c.Security = pod.Security{RunAsUser: &uid, DropCaps: []string{"ALL"}, NoNewPrivileges: true}
			c.Env, c.WorkingDir = []pod.Var{{Name: "A", Value: "of the container"}}, "/tmp"
		})
		p.start(req)
		want := "1234\nof the container\n/tmp\n0000000000000000\n1"
		text, code := p.exec(req.Spec.Key, "sh", "-c", `id -u; echo $A; pwd; grep CapBnd /proc/self/status | cut -f2; grep NoNewPrivs /proc/self/status | cut -f2; exit 5`)
		if text != want || code != 5 {
			t.Errorf("%s: code %d, printed\n%s\nwant\n%s", runtime, code, text, want)
		}
	}
}

func TestExecTerminalHasASize(t *testing.T) {
	p := newStation(t, "crun").newPod(t)
	req := p.request("exec sleep 1000")
	p.start(req)
	sizes := make(chan engine.Size, 1)
	sizes <- engine.Size{Width: 101, Height: 33}
	var out bytes.Buffer
	_, err := p.Exec(t.Context(), req.Spec.Key, &engine.Exec{
		Args: []string{"sh", "-c", `until [ "$(stty size)" = "33 101" ]; do sleep 0.01; done; tty; read line; echo "[$line] $TERM"`}, TTY: true,
		IO: engine.IO{Stdin: strings.NewReader("typed\n"), Stdout: &out, Resize: sizes},
	})
	if err != nil || !strings.Contains(out.String(), "/dev/pts/0\r\n") || !strings.Contains(out.String(), "[typed] xterm\r\n") {
		t.Errorf("printed %q, %v", out.String(), err)
	}
}

func TestExecDoesNotWaitForABackgroundChild(t *testing.T) {
	p := newStation(t, "crun").newPod(t)
	req := p.request("exec sleep 1000")
	p.start(req)
	began := time.Now()
	text, code := p.exec(req.Spec.Key, "sh", "-c", "sleep 1000 & echo said")
	if text != "said" || code != 0 {
		t.Errorf("code %d, printed %q", code, text)
	}
	if took := time.Since(began); took > 500*time.Second { // it waits for the child, or is near it
		t.Errorf("took %v", took)
	}
}

// slowWriter takes a little at a time, long after the process has ended.
type slowWriter struct {
	bytes.Buffer
	gate <-chan time.Time
}

func (w *slowWriter) Write(p []byte) (int, error) {
	<-w.gate
	return w.Buffer.Write(p)
}

func TestExecDeliversEverythingToASlowClient(t *testing.T) {
	p := newStation(t, "crun").newPod(t)
	req := p.request("exec sleep 1000")
	p.start(req)
	tick := time.NewTicker(80 * time.Millisecond)
	defer tick.Stop()
	w := &slowWriter{gate: tick.C}
	_, err := p.Exec(t.Context(), req.Spec.Key, &engine.Exec{
		Args: []string{"sh", "-c", "sleep 1000 & head -c 150000 /dev/zero"}, IO: engine.IO{Stdout: w},
	})
	if err != nil || w.Len() != 150000 {
		t.Errorf("%d bytes, %v, want 150000", w.Len(), err)
	}
}

func TestEndedExecLeavesNoProcess(t *testing.T) {
	for name, script := range map[string]string{
		"two children":            "sleep 4321 & printf up; sleep 4322",
		"one child after another": "printf up; while :; do sleep 4321 & done",
	} {
		t.Run(name, func(t *testing.T) { endedExecLeavesNoProcess(t, script) })
	}
}

func endedExecLeavesNoProcess(t *testing.T, script string) {
	p := newStation(t, "crun").newPod(t)
	req := p.request("exec sleep 1000")
	p.start(req)
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	go func() {
		_, _ = io.ReadFull(r, make([]byte, len("up")))
		cancel()
		_, _ = io.Copy(io.Discard, r)
	}()
	_, err := p.Exec(ctx, req.Spec.Key, &engine.Exec{
		Args: []string{"sh", "-c", script}, IO: engine.IO{Stdout: w},
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	// Those of a machine that is busy end late, but none runs on by itself.
	text := ""
	for end := time.Now().Add(patience); time.Now().Before(end); <-time.After(10 * time.Millisecond) {
		if text, _ = p.exec(req.Spec.Key, "ps", "-o", "args"); !strings.Contains(text, "432") {
			return
		}
	}
	t.Errorf("processes left:\n%s", text)
}

func TestAttachedInputEndsTheStdinOfTheFirstClient(t *testing.T) {
	p := newStation(t, "crun").newPod(t)
	req := p.request("cat; echo end", func(c *pod.ContainerSpec) { c.Stdin, c.StdinOnce = true, true })
	p.start(req)
	var out bytes.Buffer
	err := p.Attach(t.Context(), req.Spec.Key, engine.IO{Stdin: strings.NewReader("all of it\n"), Stdout: &out})
	if err != nil || out.String() != "all of it\nend\n" {
		t.Errorf("printed %q, %v", out.String(), err)
	}
	if text := p.logged(req); text != "all of it\nend" {
		t.Errorf("logged %q", text)
	}
}

func TestAttachToATerminal(t *testing.T) {
	p := newStation(t, "crun").newPod(t)
	req := p.request(`until [ "$(stty size)" = "24 77" ]; do sleep 0.01; done; read line; echo "[$line]"`, func(c *pod.ContainerSpec) {
		c.Stdin, c.TTY = true, true
	})
	p.start(req)
	sizes := make(chan engine.Size, 1)
	sizes <- engine.Size{Width: 77, Height: 24}
	var out bytes.Buffer
	err := p.Attach(t.Context(), req.Spec.Key, engine.IO{Stdin: strings.NewReader("typed\n"), Stdout: &out, Resize: sizes})
	if err != nil || !strings.Contains(out.String(), "[typed]\r\n") {
		t.Errorf("printed %q, %v", out.String(), err)
	}
}

func TestManyExecsLeaveNoDescriptor(t *testing.T) {
	p := newStation(t, "crun").newPod(t)
	req := p.request("exec sleep 1000")
	p.start(req)
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // it would close what was forgotten
	p.exec(req.Spec.Key, "true")
	before := count()
	for range 10 {
		p.exec(req.Spec.Key, "true")
	}
	after := count()
	for end := time.Now().Add(patience); after > before && time.Now().Before(end); <-time.After(10 * time.Millisecond) {
		after = count() // what ends behind an exec's answer
	}
	if after > before {
		t.Errorf("%d descriptors before, %d after", before, after)
	}
}
