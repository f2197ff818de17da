package kube

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Process is one part of the cluster, which writes to a log file of its own and dies with the test.
type Process struct {
	Name string
	Log  string // path of its standard output and error

	t    testing.TB
	make func() *exec.Cmd

	mu    sync.Mutex
	cmd   *exec.Cmd     // guarded by mu
	ended chan struct{} // guarded by mu; closed when cmd was waited for
}

// run starts what build returns; Restart calls it again.
func run(t testing.TB, logs, name string, build func() *exec.Cmd) *Process {
	t.Helper()
	p := &Process{Name: name, Log: filepath.Join(logs, name+".log"), t: t, make: build}
	_ = os.Remove(p.Log) // of a cluster before
	t.Cleanup(func() { p.Stop(syscall.SIGKILL) })
	p.Start()
	return p
}

// Start starts the process, which must not be running.
func (p *Process) Start() {
	p.t.Helper()
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		p.t.Fatal(err)
	}
	defer log.Close()
	cmd := p.make()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		p.t.Fatalf("start %s: %v", p.Name, err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // how it ended is in its log
		close(ended)
	}()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cmd, p.ended = cmd, ended
}

// Stop signals the process and waits for its end; SIGKILL follows after 20 seconds.
func (p *Process) Stop(s syscall.Signal) {
	p.mu.Lock()
	cmd, ended := p.cmd, p.ended
	p.mu.Unlock()
	if cmd == nil {
		return
	}
	_ = cmd.Process.Signal(s)
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		_ = cmd.Process.Kill()
		<-ended
	}
}

// Restart ends the process with s and starts it again.
func (p *Process) Restart(s syscall.Signal) {
	p.t.Helper()
	p.Stop(s)
	p.Start()
}

// Running says whether the process has not ended.
func (p *Process) Running() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return false
	}
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// Pid is the process's id, in the lab's PID namespace.
func (p *Process) Pid() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cmd.Process.Pid
}

// tail is the end of the log, for a failure's message.
func (p *Process) tail() string {
	data, err := os.ReadFile(p.Log)
	if err != nil {
		return err.Error()
	}
	const most = 3000
	return fmt.Sprintf("%s:\n%s", p.Name, data[max(0, len(data)-most):])
}
