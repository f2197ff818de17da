package bridge_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gantry/internal/bridge"
)

// edit rewrites the files of the state directory that match.
func (n *node) edit(pattern string, change func([]byte) []byte) {
	n.t.Helper()
	files, err := filepath.Glob(filepath.Join(n.state, pattern))
	if err != nil || len(files) == 0 {
		n.t.Fatalf("no file matches %s: %v", pattern, err)
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			n.t.Fatal(err)
		}
		if err := os.WriteFile(f, change(data), 0o600); err != nil {
			n.t.Fatal(err)
		}
	}
}

func TestLeasesOfAnEarlierBootAreFree(t *testing.T) {
	n := newNode(t)
	n.configure(bridge.Conflist(bridge.Config{Subnets: prefixes("198.51.100.0/30")}))
	p := n.add(newPod(t, port{8080, 80, "tcp", ""}))
	boot := strings.TrimSpace(run(t, "", "cat", "/proc/sys/kernel/random/boot_id"))
	earlier := func(data []byte) []byte { return bytes.ReplaceAll(data, []byte(boot), []byte("earlier")) }
	n.edit("*/leases/*.*", earlier)
	n.edit("*/attachments/*", earlier)
	run(t, "", "ip", "netns", "del", p.name) // a reboot leaves no link
	n.restart()
	if q := n.add(newPod(t, port{8080, 80, "tcp", ""})); q.v4() != p.v4() {
		t.Errorf("%s was given, want the only address %s", q.v4(), p.v4())
	}
}

func TestLeaseWithoutRecordIsCollected(t *testing.T) {
	n := newNode(t)
	keep := n.add(newPod(t))
	before := n.left()
	gone := n.add(newPod(t))
	if err := os.Remove(filepath.Join(n.state, bridge.DefaultBridge, "attachments", gone.id+"-eth0.json")); err != nil {
		t.Fatal(err)
	}
	n.restart()
	if err := n.gc(keep); err != nil {
		t.Fatal(err)
	}
	if after := n.left(); after != before {
		t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
	}
}

func TestWhatHadLeftBeforeACrashGoes(t *testing.T) {
	n := newNode(t)
	stays := n.add(newPod(t))
	before := n.left()
	p := n.add(newPod(t, port{8081, 80, "tcp", ""}))
	n.restart() // and the process ended between the answer to DEL and the end of the link
	n.edit("*/attachments/"+p.id+"*", func(record []byte) []byte {
		return bytes.Replace(record, []byte("{"), []byte(`{"leaving":true,`), 1)
	})
	// It may be named as valid still: its sandbox was stopped, not removed.
	if err := n.gc(stays, p); err != nil {
		t.Fatal(err)
	}
	if after := n.left(); after != before {
		t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
	}
}

func TestLinkThatNobodyKnowsIsCollected(t *testing.T) {
	n := newNode(t)
	keep := n.add(newPod(t))
	before := n.left()
	gone := n.add(newPod(t))
	for _, pattern := range []string{"attachments/" + gone.id + "*", "leases/" + gone.v4().String(), "leases/" + gone.v6().String()} {
		files, _ := filepath.Glob(filepath.Join(n.state, bridge.DefaultBridge, pattern))
		for _, f := range files {
			if err := os.Remove(f); err != nil {
				t.Fatal(err)
			}
		}
	}
	n.restart()
	if err := n.gc(keep); err != nil {
		t.Fatal(err)
	}
	if after := n.left(); after != before {
		t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
	}
}

// TestCallThatHangsIsGivenUp has an ADD that comes back long after its caller has left.
func TestCallThatHangsIsGivenUp(t *testing.T) {
	n := newNode(t)
	n.add(newPod(t))
	b := n.restart()
	before := n.left()
	held, release := make(chan struct{}), make(chan struct{})
	b.SetHook(func(verb string) {
		if verb == "ADD" {
			close(held)
			<-release
		}
	})
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		<-held
		cancel(errors.New("kubelet is gone"))
	}()
	p := newPod(t, port{8080, 80, "tcp", ""})
	_, err := n.cni.AddNetworkList(ctx, n.list, p.conf())
	if err == nil || !strings.Contains(err.Error(), "gantry-bridge ADD was given up after ") || !strings.Contains(err.Error(), "kubelet is gone") {
		t.Errorf("ADD: %v; want plugin, verb, time and cause", err)
	}
	<-held
	if err := n.cni.DelNetworkList(ctx, n.list, p.conf()); err == nil {
		t.Error("DEL succeeded while ADD was still at work")
	}
	close(release)
	n.del(p)
	if after := n.left(); after != before {
		t.Errorf("left behind:\n%s\nbefore:\n%s", after, before)
	}
}
