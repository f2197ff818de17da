package cni_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gantry/internal/cni"
	"gantry/internal/lab"
	"gantry/internal/pod"
)

func TestMain(m *testing.M) { lab.Main(m) }

// patience is how long anything may take that is not measured.
const patience = time.Minute

// realPlugins is where Debian installs them.
const realPlugins = "/usr/lib/cni"

// site is a server's directories, with plugins that are shell scripts.
type site struct {
	t    testing.TB
	opts cni.Options
	bin  string
	logs chan string
}

func newSite(t testing.TB) *site {
	t.Helper()
	dir := t.TempDir()
	s := &site{t: t, bin: filepath.Join(dir, "bin"), logs: make(chan string, 1000)}
	s.opts = cni.Options{
		ConfDir: filepath.Join(dir, "etc/cni/net.d"), BinDirs: []string{s.bin, realPlugins},
		CacheDir: filepath.Join(dir, "cache"), Log: slog.New(&handler{lines: s.logs}),
	}
	for _, d := range []string{s.bin, s.opts.ConfDir} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// start is a server's start; the state of earlier ones is there.
func (s *site) start() *cni.Network {
	s.t.Helper()
	n, err := cni.New(s.opts)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = n.Close() })
	return n
}

// conf writes a configuration file whole, as administrators' tools do.
func (s *site) conf(name, content string) {
	s.t.Helper()
	path := filepath.Join(s.opts.ConfDir, name)
	if err := os.WriteFile(path+".new", []byte(content), 0o644); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		s.t.Fatal(err)
	}
}

// plugin writes a shell script that appends its verb to the returned file first.
func (s *site) plugin(name, script string) (verbs string) {
	s.t.Helper()
	verbs = filepath.Join(s.bin, name+".verbs")
	body := "#!/bin/sh\necho $CNI_COMMAND >> " + verbs + "\n" + script + "\n"
	if err := os.WriteFile(filepath.Join(s.bin, name), []byte(body), 0o755); err != nil {
		s.t.Fatal(err)
	}
	return verbs
}

// list is a configuration of script plugins.
func list(version string, plugins ...string) string {
	for i, p := range plugins {
		plugins[i] = fmt.Sprintf(`{"type": %q}`, p)
	}
	return fmt.Sprintf(`{"cniVersion": %q, "name": "test", "plugins": [%s]}`, version, strings.Join(plugins, ","))
}

// waitLog waits until a log line contains text.
func (s *site) waitLog(text string) {
	s.t.Helper()
	timeout := time.After(patience)
	var seen []string
	for {
		select {
		case line := <-s.logs:
			if strings.Contains(line, text) {
				return
			}
			seen = append(seen, line)
		case <-timeout:
			s.t.Fatalf("no log line has %q:\n%s", text, strings.Join(seen, "\n"))
		}
	}
}

// handler hands log lines to the test.
type handler struct{ lines chan string }

func (h *handler) Enabled(context.Context, slog.Level) bool { return true }
func (h *handler) WithAttrs([]slog.Attr) slog.Handler       { return h }
func (h *handler) WithGroup(string) slog.Handler            { return h }
func (h *handler) Handle(_ context.Context, r slog.Record) error {
	line := r.Message
	r.Attrs(func(a slog.Attr) bool { line += " " + a.String(); return true })
	h.lines <- line
	return nil
}

var netNSCount int

// newPod makes a network namespace and what the pod is attached by.
func newPod(t testing.TB) *cni.Attachment {
	t.Helper()
	netNSCount++
	name := fmt.Sprintf("test%d", netNSCount)
	run(t, "ip", "netns", "add", name)
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", name).Run() })
	return &cni.Attachment{
		Key: pod.NewKey(), NetNS: "/var/run/netns/" + name,
		Metadata: pod.Metadata{Name: "web", Namespace: "shop", UID: "uid-1"},
	}
}

func run(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func attach(t testing.TB, n *cni.Network, a *cni.Attachment) *pod.Network {
	t.Helper()
	network, err := n.Attach(t.Context(), a)
	if err != nil {
		t.Fatalf("Attach: %v", err)
	}
	return network
}

func detach(t testing.TB, n *cni.Network, a *cni.Attachment) {
	t.Helper()
	if err := n.Detach(t.Context(), a); err != nil {
		t.Fatalf("Detach: %v", err)
	}
}

func read(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(data)
}

// cached fails the test unless the server still knows exactly want.
func cached(t testing.TB, n *cni.Network, want ...pod.Key) {
	t.Helper()
	have, err := n.Cached(t.Context())
	if err != nil || fmt.Sprint(have) != fmt.Sprint(want) {
		t.Errorf("known pods %v, %v; want %v", have, err, want)
	}
}
