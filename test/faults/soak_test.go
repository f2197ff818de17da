package faults_test

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/test/node"
)

const (
	soakWorkers    = 8
	metricsAddress = "127.0.0.1:19099"
)

// TestSoak churns pods for as long as GANTRY_SOAK says, with execs that leave children behind, images
// and containers that fail, log rotation and kills of server and worker, and wants nothing to have
// grown at the end: descriptors, threads, memory, mounts, namespaces, files.
func TestSoak(t *testing.T) {
	length, err := time.ParseDuration(os.Getenv("GANTRY_SOAK"))
	if err != nil {
		t.Skip("GANTRY_SOAK, a duration, is not set: see `make soak`")
	}
	w := newWorld(t, "builtin", "--metrics-listen", metricsAddress)
	w.churn(t, 2*soakWorkers, time.Now().Add(time.Hour)) // what pools and caches keep
	w.warmUp(t)
	before := w.figures()
	stop := make(chan struct{})
	var killer sync.WaitGroup
	killer.Go(func() { w.killNowAndThen(stop) })
	ctx, leave := context.WithCancel(context.Background())
	deaf := w.subscribeAndStopReading(ctx)
	pods := w.churn(t, 1<<30, time.Now().Add(length))
	close(stop)
	killer.Wait()
	leave()
	t.Logf("%d event streams were opened and never read", deaf())
	w.n.Kill()
	w.n.Restart()
	w.churn(t, 2*soakWorkers, time.Now().Add(time.Hour)) // the server is a new one
	w.removeAll()
	w.nothingIsLeft()
	after := w.figures()
	t.Logf("%d pods in %v\nbefore %v\nafter  %v", pods, length, before, after)
	for name, was := range before {
		if is := after[name]; is > was+was/4+8 {
			t.Errorf("%s grew from %d to %d", name, was, is)
		}
	}
}

// churn lives pods with all workers until so many have lived or the time is over.
func (w *world) churn(t *testing.T, most int, until time.Time) (lived int) {
	t.Helper()
	var mu sync.Mutex
	next := func() bool {
		mu.Lock()
		defer mu.Unlock()
		if lived >= most || time.Now().After(until) || t.Failed() {
			return false
		}
		lived++
		return true
	}
	var wg sync.WaitGroup
	for i := range soakWorkers {
		wg.Go(func() {
			for n := 0; next(); n++ {
				if err := w.live(fmt.Sprintf("soak%d", i), n); err != nil {
					t.Errorf("worker %d, pod %d: %v", i, n, err)
				}
			}
		})
	}
	wg.Wait()
	return lived
}

// again repeats a call as the kubelet does, over the kills of server and worker.
func again(call func() error) error {
	var err error
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		switch err = call(); status.Code(err) {
		case codes.Unavailable, codes.Aborted, codes.Canceled, codes.Unknown:
			<-time.After(50 * time.Millisecond)
		default:
			return err
		}
	}
	return err
}

// live is one pod's life, with one of the things that go wrong in it.
func (w *world) live(name string, turn int) error {
	ctx := w.n.Context()
	sandbox := w.n.Sandbox(name)
	config := node.Container("main", w.image, "sh", "-c", lines)
	config.Tty = turn%5 == 4
	var pod, id string
	err := again(func() error {
		r, failure := w.n.Runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: sandbox})
		pod = r.GetPodSandboxId()
		return failure
	})
	if err != nil {
		return fmt.Errorf("run pod: %w", err)
	}
	err = again(func() error {
		r, failure := w.n.Runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: config, SandboxConfig: sandbox})
		id = r.GetContainerId()
		return failure
	})
	if err != nil {
		return fmt.Errorf("create container: %w", err)
	}
	err = again(func() error {
		_, failure := w.n.Runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
		if status.Code(failure) == codes.FailedPrecondition { // an earlier one was heard
			return nil
		}
		return failure
	})
	if err != nil {
		return fmt.Errorf("start container: %w", err)
	}
	w.trouble(turn, sandbox, pod, id)
	err = again(func() error {
		_, failure := w.n.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod})
		return failure
	})
	if err != nil {
		return fmt.Errorf("stop pod: %w", err)
	}
	err = again(func() error {
		_, failure := w.n.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod})
		return failure
	})
	if err != nil {
		return fmt.Errorf("remove pod: %w", err)
	}
	return os.RemoveAll(sandbox.LogDirectory)
}

// trouble is what a pod has to live with; what it answers is of no interest, only what it leaves.
func (w *world) trouble(turn int, sandbox *runtimeapi.PodSandboxConfig, pod, id string) {
	ctx := w.n.Context()
	switch turn % 6 {
	case 0: // a child that holds the exec's output open
		_, _ = w.n.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", "sleep 1000 & echo started"}, Timeout: 1})
	case 1: // a container that cannot be created, an image that is not there
		bad := node.Container("bad", w.image, "/no/such/program")
		_, _ = w.n.Runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: bad, SandboxConfig: sandbox})
		_, _ = w.n.Images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: layered(w.t) + "-missing"}})
	case 2: // log rotation
		path := filepath.Join(sandbox.LogDirectory, "main_0.log")
		_ = os.Rename(path, path+".old")
		_, _ = w.n.Runtime.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: id})
	case 3: // an exec past its time, a stop with a grace period
		_, _ = w.n.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sleep", "1000"}, Timeout: 1})
		_, _ = w.n.Runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 2})
	case 4: // a client that vanishes while it is attached
		w.vanish("attach", id)
	case 5: // and one in the middle of an exec, whose command goes on
		w.vanish("exec", id, "sh", "-c", "while :; do echo busy; sleep 0.1; done")
	}
}

// vanish runs a command of gantry's and kills it when it has printed something, or after a few seconds.
func (w *world) vanish(args ...string) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	cmd := w.n.GantryCommand(ctx, args...)
	out, err := cmd.StdoutPipe()
	if err != nil || cmd.Start() != nil {
		return
	}
	_, _ = out.Read(make([]byte, 1))
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

// subscribeAndStopReading opens streams of events until ctx ends, one every second, a few at a time,
// and reads none. The returned function waits and says how many there were.
func (w *world) subscribeAndStopReading(ctx context.Context) (opened func() int) {
	var wg sync.WaitGroup
	n := 0
	wg.Go(func() {
		for ctx.Err() == nil {
			own, cancel := context.WithTimeout(ctx, 5*time.Second)
			if _, err := w.n.Runtime.GetContainerEvents(own, &runtimeapi.GetEventsRequest{}); err == nil {
				n++
			}
			wg.Go(func() { <-own.Done(); cancel() })
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	})
	return func() int { wg.Wait(); return n }
}

// killNowAndThen kills the server or the worker every few seconds.
func (w *world) killNowAndThen(stop <-chan struct{}) {
	random := rand.New(rand.NewPCG(1, uint64(os.Getpid())))
	for {
		select {
		case <-stop:
			return
		case <-time.After(time.Duration(2+random.IntN(4)) * time.Second):
		}
		if random.IntN(2) == 0 {
			w.n.KillWorker()
			continue
		}
		w.n.Kill()
		w.n.Restart()
	}
}

// goroutines are the server's, as its metrics say.
func (w *world) goroutines() int {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.n.Context(), http.MethodGet, "http://"+metricsAddress+"/metrics", http.NoBody)
	if err != nil {
		w.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	scanner := bufio.NewScanner(resp.Body)
	for scanner.Scan() {
		if value, found := strings.CutPrefix(scanner.Text(), "go_goroutines "); found {
			n, bad := strconv.Atoi(value)
			if bad != nil {
				w.t.Fatal(bad)
			}
			return n
		}
	}
	w.t.Fatal("the metrics have no go_goroutines")
	return 0
}

// figures are what may not grow, of the server and the keeper.
func (w *world) figures() map[string]int {
	w.t.Helper()
	holder, workerPid := w.n.Keeper()
	f := map[string]int{"server goroutines": w.goroutines()}
	for name, pid := range map[string]int{"server": w.n.Pid(), "holder": holder, "worker": workerPid} {
		fds, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(pid), "fd"))
		if err != nil {
			w.t.Fatal(err)
		}
		f[name+" descriptors"] = len(fds)
		for line := range strings.Lines(node.ReadFile(w.t, filepath.Join("/proc", strconv.Itoa(pid), "status"))) {
			fields := strings.Fields(line)
			switch fields[0] {
			case "VmRSS:":
				kib, err := strconv.Atoi(fields[1])
				if err != nil {
					w.t.Fatal(err)
				}
				f[name+" MiB"] = kib >> 10
			case "Threads:":
				f[name+" threads"], _ = strconv.Atoi(fields[1])
			}
		}
	}
	return f
}
