package faults_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/killpoint"
	"gantry/test/leftovers"
	"gantry/test/node"
)

// point is one occurrence of a point of the server's, the worker's or a program's.
type point struct {
	process string // "server", "worker", or the program
	name    string
	count   int // the occurrence in the call, from 1
}

func (p point) String() string {
	if p.count > 1 {
		return fmt.Sprintf("%s %s (%d)", p.process, p.name, p.count)
	}
	return p.process + " " + p.name
}

// world is a node with what the faults need.
type world struct {
	n        *node.Node
	t        testing.TB
	network  string
	dir      string // of kill points and programs
	image    string
	before   leftovers.Snapshot
	programs []program

	outcome string // of the last case

	// of one case
	sandbox   *runtimeapi.PodSandboxConfig
	config    *runtimeapi.ContainerConfig
	handler   string // "" is the wrapped runtime's
	pod       string
	container string
	pulled    string
	played    bool // the container's restore is played, and its crun may be killed
}

func newWorld(t *testing.T, network string, flags ...string) *world {
	t.Helper()
	dir := t.TempDir()
	t.Setenv(killpoint.Env, dir)
	w := &world{network: network, dir: dir}
	opts := node.Options{Network: network, Flags: append(w.wrapPrograms(t), flags...), Runtime: ociRuntime}
	w.n = node.Prepare(t, opts)
	if network == "cni" {
		w.stageNetwork(t, filepath.Join(w.n.Root, "net.d"))
	}
	w.n.Restart()
	w.image = w.n.Pull(node.Busybox(t))
	w.warmUp(t)
	return w
}

// warmUp makes what the first pod makes for all, the bridge and its rules, and takes the machine as
// it is then as what every case has to leave.
func (w *world) warmUp(t testing.TB) {
	t.Helper()
	handlers := []string{""}
	if ociRuntime == "crun" {
		handlers = append(handlers, handlerDirect)
	}
	for _, h := range handlers {
		w.reset(t)
		w.handler = h
		w.use()
		w.removeAll()
	}
	var err error
	if w.before, err = leftovers.Take(t.Context(), w.scope()); err != nil {
		t.Fatal(err)
	}
	w.before["process"] = append(w.before["process"], w.holderLines()...)
}

// holderLines are the command lines that a holder may have: they say who started it.
func (w *world) holderLines() []string {
	rest := " --state " + filepath.Join(w.n.State, "keeper") + " --cgroup /gantry-keeper "
	return []string{node.Binary(w.t, "gantry-keeper") + rest + "--ready", "gantry-keeper" + rest + "--adopt"}
}

func (w *world) disarm() {
	w.t.Helper()
	if err := killpoint.Disarm(w.dir); err != nil {
		w.t.Fatal(err)
	}
	for _, name := range []string{killpoint.TraceFile, programFile} {
		if err := os.Remove(filepath.Join(w.dir, name)); err != nil && !os.IsNotExist(err) {
			w.t.Fatal(err)
		}
	}
}

// scope is everything that a case may leave something in.
func (w *world) scope() leftovers.Scope {
	s := w.n.Scope()
	s.Dirs = append(s.Dirs, "/run/"+ociRuntime, "/var/lib/cni/networks")
	s.Ignore = append(s.Ignore, filepath.Join(w.n.State, "keeper", "keeper.log"))
	return s
}

// reset forgets the last case: names and host port are the same in every case, so that what one
// leaves reserved is in the way of the next.
func (w *world) reset(t testing.TB) {
	t.Helper()
	w.t, w.n, w.outcome = t, w.n.For(t), ""
	w.handler, w.pod, w.container, w.pulled, w.played = "", "", "", "", false
	w.sandbox = w.n.Sandbox("web")
	w.sandbox.Metadata.Uid = "uid-of-web"
	w.sandbox.Linux.CgroupParent = w.n.Cgroup + "/poduid-of-web"
	w.sandbox.LogDirectory = filepath.Join(w.n.Logs, "web")
	w.sandbox.PortMappings = []*runtimeapi.PortMapping{{Protocol: runtimeapi.Protocol_TCP, ContainerPort: 80, HostPort: 18080}}
	w.config = node.Container("main", w.image, "sh", "-c", lines)
	w.disarm()
	w.forgetCheckpoints()
	if err := os.RemoveAll(w.sandbox.LogDirectory); err != nil {
		t.Fatal(err)
	}
}

// learn makes the call without a fault and returns the points that it reached.
func (w *world) learn(t *testing.T, c *call) []point {
	w.reset(t)
	defer w.recover(t)
	c.adjust(w)
	c.prepare(w)
	trace := filepath.Join(w.dir, killpoint.TraceFile)
	if err := os.WriteFile(trace, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c.expect(w, c.do(w))
	points := w.readTrace(trace)
	if err := os.Remove(trace); err != nil {
		t.Fatal(err)
	}
	w.finish(c)
	return points
}

// readTrace waits until nothing is added any more: an exit is handled beside the call.
func (w *world) readTrace(path string) []point {
	const quiet = 300 * time.Millisecond
	var data string
	for last := time.Now(); time.Since(last) < quiet; {
		if now := node.ReadFile(w.t, path); now != data {
			data, last = now, time.Now()
		}
		<-time.After(20 * time.Millisecond)
	}
	var points []point
	seen := map[string]int{}
	for line := range strings.Lines(data) {
		process, name, _ := strings.Cut(strings.TrimSpace(line), "\t")
		seen[line]++
		points = append(points, point{process, name, seen[line]})
	}
	return points
}

// try is one case.
func (w *world) try(t *testing.T, f *fault) {
	w.reset(t)
	defer w.recover(t)
	f.call.adjust(w)
	f.call.prepare(w)
	w.played = f.call.restores
	_, victim := w.n.Keeper()
	w.arm(f)
	err := f.call.do(w)
	w.outcome = "answered"
	if err != nil {
		w.outcome = "repeated"
	}
	w.n.Eventually("the point is reached", func() bool { return w.fired(f) })
	if f.killsWorker() {
		w.n.Eventually("the worker is gone", func() bool { _, now := w.n.Keeper(); return now != victim })
	}
	if f.killsServer() {
		w.n.Kill() // waits until it is gone
		w.n.Restart()
	}
	f.call.expect(w, f.call.do(w))
	w.finish(f.call)
}

// finish uses what the call was about, removes everything, and compares.
func (w *world) finish(c *call) {
	w.t.Helper()
	if c.done != nil {
		c.done(w)
	}
	if c.usable {
		w.use()
	}
	w.removeAll()
	w.nothingIsLeft()
}

func (w *world) nothingIsLeft() {
	w.t.Helper()
	left, err := leftovers.Settle(w.n.Context(), w.scope(), w.before, leftovers.Patience)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, line := range left {
		w.t.Errorf("left behind: %s", line)
	}
}

// recover makes the node usable for the next case after one that failed.
func (w *world) recover(t *testing.T) {
	if !t.Failed() {
		return
	}
	w.disarm()
	t.Log(w.n.LogTail())
	if log, err := os.ReadFile(filepath.Join(w.n.State, "keeper", "keeper.log")); err == nil {
		t.Logf("--- keeper log\n%s", log[max(0, len(log)-3000):])
	}
	w.n.Kill() // does nothing where the case left none
	w.n.Restart()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	pods, err := w.n.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pods.Items {
		_, _ = w.n.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.Id})
		_, _ = w.n.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.Id})
	}
	w.warmUp(t)
}

// use runs the pod as far as it does not run, and a command in it.
func (w *world) use() {
	w.t.Helper()
	if w.pod == "" {
		withPod(w)
	}
	if w.container == "" {
		w.container = w.n.Create(w.pod, w.config, w.sandbox)
	}
	if w.n.Container(w.container).State == runtimeapi.ContainerState_CONTAINER_CREATED {
		w.n.StartContainer(w.container)
	}
	if out := w.n.Exec(w.container, "echo", "alive"); out != "alive\n" {
		w.t.Errorf("exec says %q", out)
	}
	w.n.Eventually("the container has logged", func() bool { return len(w.logged()) > 0 })
	w.checkLog()
}

// removeAll stops and removes every pod that is listed, which is one at most.
func (w *world) removeAll() {
	w.t.Helper()
	pods, err := w.n.Runtime.ListPodSandbox(w.n.Context(), &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		w.t.Fatal(err)
	}
	if len(pods.Items) > 1 {
		w.t.Errorf("%d pods are listed, want one at most", len(pods.Items))
	}
	for _, p := range pods.Items {
		w.n.RemovePod(p.Id)
	}
	list, err := w.n.Runtime.ListContainers(w.n.Context(), &runtimeapi.ListContainersRequest{})
	if err != nil {
		w.t.Fatal(err)
	}
	if len(list.Containers) > 0 {
		w.t.Errorf("%d containers are listed without a pod", len(list.Containers))
	}
	if w.pulled != "" {
		w.removeImage(w.pulled)
	}
}

// orphaned is in what the child of a killed crun create says on the container's standard error, as JSON or as
// text, of reading or of writing. It gets into the log where a restore is played by a create (node.PlayCRIU), which
// CRIU's is not.
const orphaned = "sync socket"

// logged are the lines that the container has written, in the log and in what was rotated away. One that has no end is
// being written.
func (w *world) logged() []string {
	var all []string
	for _, path := range []string{w.logPath() + ".old", w.logPath()} {
		data, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(data)) {
			if !strings.HasSuffix(line, "\n") {
				break
			}
			fields := strings.SplitN(strings.TrimRight(line, "\r\n"), " ", 4)
			if len(fields) == 4 && (!w.played || !strings.Contains(fields[3], orphaned)) {
				all = append(all, fields[3])
			}
		}
	}
	return all
}

func (w *world) logPath() string { return filepath.Join(w.sandbox.LogDirectory, w.config.LogPath) }

// checkLog wants every line once, whole and in order.
func (w *world) checkLog() {
	w.t.Helper()
	for i, line := range w.logged() {
		if want := fmt.Sprintf("line %d end", i); line != want {
			w.t.Errorf("line %d of the log is %q, want %q", i, line, want)
			return
		}
	}
}

func (f *fault) killsWorker() bool {
	return f.victim == both || f.victim == worker || f.victim == itself && f.point.process == worker
}

func (f *fault) killsServer() bool {
	return f.victim == both || f.victim == server || f.victim == itself && f.point.process == server
}

// arm has the point kill. A program's kill is armed for the program.
func (w *world) arm(f *fault) {
	w.t.Helper()
	if f.when != "" {
		w.armProgram(f)
		return
	}
	_, workerPid := w.n.Keeper()
	a := killpoint.Armed{Process: f.point.process, Point: f.point.name, Count: f.point.count}
	switch {
	case f.victim == itself:
	case f.point.process == server:
		a.Others = []int{workerPid}
	default:
		a.Others, a.Spare = []int{w.n.Pid()}, f.victim == server
	}
	if slices.Contains(a.Others, 0) {
		w.t.Fatal("there is no worker")
	}
	if err := killpoint.Arm(w.dir, a); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) fired(f *fault) bool {
	name := killpoint.ArmedFile
	if f.when != "" {
		name = programFile
	}
	_, err := os.Stat(filepath.Join(w.dir, name))
	return os.IsNotExist(err)
}
