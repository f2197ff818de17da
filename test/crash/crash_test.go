// Package crash kills the server, the keeper's worker and both while pods write as fast as they can,
// and then reads every line: none may be missing, doubled or torn, and nothing may be left.
package crash_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/lab"
	"gantry/test/leftovers"
	"gantry/test/node"
)

func TestMain(m *testing.M) { lab.Main(m) }

var (
	rounds = flag.Int("rounds", number("GANTRY_CRASH_ROUNDS", 6), "how often something is killed")
	seed   = flag.Uint64("seed", uint64(number("GANTRY_CRASH_SEED", 0)), "of the random moments; 0 takes the time")
)

// Writers number their lines until they are told to end; then they leave the count in a file, for
// the test to compare with the log, and exit with a code of their own.
const script = `i=0
trap 'echo $i >/out/count; exit $CODE' TERM
while :; do
  echo "line $i of $NAME abcdefghijklmnopqrstuvwxyz0123456789abcdefghijklmnopqrstuvwxyz end"
  i=$((i+1))
  [ $((i % BURST)) -ne 0 ] || sleep 0.1
done`

// load is how many write how fast, and how often something is killed meanwhile.
type load struct {
	writers   int
	terminals int // of the writers
	burst     int // lines in a tenth of a second; the script is never that fast with fullSpeed
	kills     int
}

const fullSpeed = 1 << 30

// writer is a pod that writes, and what is known about it.
type writer struct {
	name      string
	pod       string
	container string
	log       string
	out       string // directory that it sees as /out
	code      int32
	ended     bool // it was told to end while nobody watched
}

func TestNothingIsLost(t *testing.T) {
	for _, runtime := range []string{"crun", "runc"} {
		t.Run(runtime, func(t *testing.T) {
			killAtRandom(t, runtime, load{writers: 10, terminals: 1, burst: fullSpeed, kills: *rounds})
		})
	}
}

// TestFiftyPods is the same with as many pods as a node has, which write a hundred lines a second each.
func TestFiftyPods(t *testing.T) {
	killAtRandom(t, "crun", load{writers: 50, terminals: 5, burst: 10, kills: max(1, *rounds/2)})
}

func killAtRandom(t *testing.T, runtime string, l load) {
	n := node.Start(t, node.Options{Runtime: runtime})
	image := n.Pull(node.Busybox(t))
	pod, _ := n.Launch(n.Sandbox("warm"), node.Container("warm", image, "true"))
	n.RemovePod(pod)
	before, err := leftovers.Take(t.Context(), n.Scope())
	if err != nil {
		t.Fatal(err)
	}

	random := newRandom(t)
	all := startWriters(t, n, image, l)
	for round := range l.kills {
		kill(t, n, random, all[round%len(all)])
		check(n, all)
	}
	endWriters(n, all)
	for _, w := range all {
		w.compare(t)
		n.RemovePod(w.pod)
	}
	left, err := leftovers.Settle(n.Context(), n.Scope(), before, leftovers.Patience)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range left {
		t.Errorf("left behind: %s", line)
	}
}

// newRandom says its seed, so that a failure can be tried again.
func newRandom(t *testing.T) *rand.Rand {
	s := *seed
	if s == 0 {
		s = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d: repeat with GANTRY_CRASH_SEED=%d", s, s)
	return rand.New(rand.NewPCG(s, 0))
}

func startWriters(t *testing.T, n *node.Node, image string, l load) []*writer {
	t.Helper()
	var all []*writer
	for i := range l.writers {
		w := &writer{name: fmt.Sprintf("writer%d", i), code: int32(20 + i), out: t.TempDir()}
		sandbox := n.Sandbox(w.name)
		config := node.Container(w.name, image, "sh", "-c", script)
		config.Tty = i < l.terminals
		config.Envs = []*runtimeapi.KeyValue{
			{Key: "NAME", Value: []byte(w.name)},
			{Key: "CODE", Value: []byte(strconv.Itoa(int(w.code)))},
			{Key: "BURST", Value: []byte(strconv.Itoa(l.burst))},
		}
		config.Mounts = []*runtimeapi.Mount{{HostPath: w.out, ContainerPath: "/out"}}
		w.pod, w.container = n.Launch(sandbox, config)
		w.log = filepath.Join(sandbox.LogDirectory, config.LogPath)
		all = append(all, w)
	}
	return all
}

// kill kills the server, the worker or both at a random moment. Now and then a container is told to
// end while the server is down.
func kill(t *testing.T, n *node.Node, random *rand.Rand, w *writer) {
	t.Helper()
	<-time.After(time.Duration(random.IntN(400)) * time.Millisecond) // the moment is the point
	victim := random.IntN(3)
	if victim != 1 {
		n.Kill()
	}
	if victim != 0 && !n.KillWorker() {
		t.Log("the worker was between two lives")
	}
	if victim == 1 {
		return
	}
	if !w.ended && random.IntN(4) == 0 {
		w.ended = true
		node.Terminate(t, n.ContainerPid("line $i of $NAME", "NAME="+w.name))
	}
	n.Restart()
}

// check looks at what a restart must have kept.
func check(n *node.Node, all []*writer) {
	t := n.T()
	t.Helper()
	list, err := n.Runtime.ListContainers(n.Context(), &runtimeapi.ListContainersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	pods, err := n.Runtime.ListPodSandbox(n.Context(), &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if len(list.Containers) != len(all) || len(pods.Items) != len(all) {
		t.Fatalf("%d containers and %d pods are listed, want %d", len(list.Containers), len(pods.Items), len(all))
	}
	for _, w := range all {
		if w.ended {
			w.checkExit(n)
			continue
		}
		if out := n.Exec(w.container, "echo", w.name); out != w.name+"\n" {
			t.Errorf("exec in %s says %q", w.name, out)
		}
	}
}

func (w *writer) checkExit(n *node.Node) {
	n.T().Helper()
	if s := n.Ended(w.container); s.ExitCode != w.code || s.Reason != "Error" {
		n.T().Errorf("%s ended with code %d, reason %s; want %d, Error", w.name, s.ExitCode, s.Reason, w.code)
	}
}

func endWriters(n *node.Node, all []*writer) {
	for _, w := range all {
		if !w.ended {
			n.StopContainer(w.container, time.Minute)
		}
		w.checkExit(n)
	}
}

// compare reads the log: the lines 0 to count-1, each whole, each once. The signal may come between
// the writing of a line and its counting: then one more line is right.
func (w *writer) compare(t *testing.T) {
	t.Helper()
	count, err := strconv.Atoi(strings.TrimSpace(node.ReadFile(t, filepath.Join(w.out, "count"))))
	if err != nil {
		t.Fatalf("%s left no count: %v", w.name, err)
	}
	lines, err := readLog(w.log)
	if err != nil {
		t.Fatalf("log of %s: %v", w.name, err)
	}
	if len(lines) != count && len(lines) != count+1 {
		t.Errorf("%s wrote %d lines, its log has %d", w.name, count, len(lines))
	}
	wrong := 0
	for i, line := range lines {
		want := fmt.Sprintf("line %d of %s abcdefghijklmnopqrstuvwxyz0123456789abcdefghijklmnopqrstuvwxyz end", i, w.name)
		if line != want && wrong < 3 {
			wrong++
			t.Errorf("%s, line %d of its log: %q, want %q", w.name, i, line, want)
		}
	}
	t.Logf("%s: %d lines, %d bytes", w.name, len(lines), size(w.log))
}

func size(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return info.Size()
}

func number(env string, otherwise int) int {
	if v, err := strconv.Atoi(os.Getenv(env)); err == nil {
		return v
	}
	return otherwise
}
