package faults_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/test/node"
)

// stuckPlugin connects nobody and says so; its STATUS never answers.
const stuckPlugin = `#!/bin/sh
case $CNI_COMMAND in
STATUS) exec sleep 1000001;;
ADD) echo '{"cniVersion":"1.1.0","ips":[{"address":"10.254.254.2/24"}]}';;
esac
`

// A plugin whose STATUS hangs makes Status say so within its time, and delays nobody.
func TestStatusOfTheNetworkHangs(t *testing.T) {
	bin, conf := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "stuck"), []byte(stuckPlugin), 0o700); err != nil {
		t.Fatal(err)
	}
	node.WriteCNI(t, conf, `{"cniVersion":"1.1.0","name":"stuck","plugins":[{"type":"stuck"}]}`)
	n := node.Start(t, node.Options{Runtime: "crun", Network: "cni", CNIConf: conf, Flags: []string{"--cni-bin-dir", bin}})
	w := &world{n: n, t: t, image: n.Pull(node.Busybox(t))}
	answered := make(chan time.Duration, 1)
	go func() {
		began := time.Now()
		_, _ = n.Runtime.Status(context.Background(), &runtimeapi.StatusRequest{})
		answered <- time.Since(began)
	}()
	w.othersAreNotDelayed()
	if took := <-answered; took > delayed {
		t.Errorf("Status took %v", took)
	}
	r, err := n.Runtime.Status(n.Context(), &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range r.Status.Conditions {
		if c.Type == runtimeapi.RuntimeReady && !c.Status {
			t.Errorf("the runtime is not ready: %s", c.Message)
		}
		if c.Type == runtimeapi.NetworkReady && (c.Status || !strings.Contains(c.Message, "stuck STATUS")) {
			t.Errorf("the network is ready: %v, %q; want what hangs to be named", c.Status, c.Message)
		}
	}
}

// A registry that takes connections and never answers holds up nobody but who waits for it, and no
// longer than he does; Status names the image.
func TestRegistryHangs(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close() // whoever connects waits in its backlog
	n := node.Start(t, node.Options{Runtime: "crun"})
	w := &world{n: n, t: t, image: n.Pull(node.Busybox(t))}
	ref := listener.Addr().String() + "/lab/never:1"
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	pulled := make(chan error, 1)
	go func() {
		_, failure := n.Images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
		pulled <- failure
	}()
	said := func() string {
		r, failure := n.Runtime.Status(n.Context(), &runtimeapi.StatusRequest{Verbose: true})
		if failure != nil {
			t.Fatal(failure)
		}
		return r.Info["image."+ref]
	}
	n.Eventually("Status names the image", func() bool { return strings.Contains(said(), "pulling for ") })
	w.othersAreNotDelayed()
	cancel()
	if err = <-pulled; status.Code(err) != codes.Canceled {
		t.Errorf("the pull answers %v", err)
	}
	n.Eventually("nobody pulls", func() bool { return said() == "" })
}

// A worker that is stopped answers nobody and writes no log. It is replaced, and no line is lost.
func TestStoppedWorkerIsReplaced(t *testing.T) {
	w := newWorld(t, "builtin")
	w.reset(t)
	running(w)
	_, before := w.n.Keeper()
	if before == 0 {
		t.Fatal("there is no worker")
	}
	if err := syscall.Kill(before, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	r, err := w.n.Runtime.Status(w.n.Context(), &runtimeapi.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if ready := r.Status.Conditions[0]; ready.Status || !strings.Contains(ready.Message, "did not answer") {
		t.Errorf("Status says %v, %q of a worker that is stopped", ready.Status, ready.Message)
	}
	w.n.Eventually("another worker", func() bool { _, now := w.n.Keeper(); return now > 0 && now != before })
	w.use()
	logged := len(w.logged())
	w.n.Eventually("output goes on", func() bool { return len(w.logged()) > logged+3 })
	w.checkLog()
	if log := node.ReadFile(t, filepath.Join(w.n.State, "keeper", "keeper.log")); !strings.Contains(log, "is replaced") {
		t.Errorf("the keeper does not say why it replaced the worker:\n%s", log)
	}
	w.removeAll()
	w.nothingIsLeft()
}

// What is being made, and hangs in that, is in no list; gantry inspect shows at which step it is.
func TestInspectShowsTheStep(t *testing.T) {
	w := newWorld(t, "cni")
	w.reset(t)
	if err := os.WriteFile(filepath.Join(w.dir, programFile), []byte("stage-bridge ADD hang\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	defer endSleepers()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := runPodWith(ctx, w); status.Code(err) != codes.DeadlineExceeded {
		t.Fatalf("the call that hangs answers %v", err)
	}
	if out := w.n.Gantry("inspect", "web"); !strings.Contains(out, `creating, at step \"network attach\" for `) {
		t.Errorf("inspect says %s", out)
	}
}
