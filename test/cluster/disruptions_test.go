package cluster_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"gantry/test/cluster/kube"
)

// disruptions are checks that disturb the node, one after the other.
func disruptions(t *testing.T, c *kube.Cluster) {
	alone := func(name string, f func(s *suite)) {
		t.Run(name, func(t *testing.T) { f(newSuite(t, c)) })
	}
	alone("a static pod runs and goes with its file", staticPod)
	alone("the kubelet restarts under running pods", func(s *suite) {
		s.survives(func() { s.Nodes[0].Kubelet.Restart(syscall.SIGTERM) })
	})
	alone("gantry restarts under running pods", func(s *suite) {
		s.survives(func() { s.Nodes[0].Gantry.Restart(syscall.SIGTERM) })
	})
	alone("gantry and the worker are killed while a rolling update, a job and a follower run", killsUnderLoad)
	alone("the node's power is cut under running pods", reboot)
	alone("a drained node is empty", drain)
}

func staticPod(s *suite) {
	n := s.Nodes[0]
	path := filepath.Join(n.Root, "manifests", "static.yaml")
	manifest := fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: static, namespace: %s}
spec: {terminationGracePeriodSeconds: 1, containers: [{name: main, image: %q, command: [sleep, "1000"]}]}
`, s.namespace, kube.Busybox)
	if err := os.WriteFile(path, []byte(manifest), 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.ready("static-" + n.Name)
	if err := os.Remove(path); err != nil {
		s.t.Fatal(err)
	}
	s.eventually("the pod is gone", func(ctx context.Context) error {
		if _, err := s.pod(ctx, "static-"+n.Name); err == nil {
			return fmt.Errorf("it is there")
		}
		return nil
	})
}

// survives runs pods, disturbs the node and checks that nothing restarted and the log has every line.
func (s *suite) survives(disturb func()) {
	s.t.Helper()
	s.apply(countingPod)
	before := s.ready("count")
	s.apply(sleeper)
	s.ready("pod")
	disturb()
	for _, n := range s.Nodes {
		n.WaitReady()
	}
	s.apply(strings.ReplaceAll(sleeper, "name: pod}", "name: new}"))
	s.ready("new")
	s.follow("count", 300)
	after := s.ready("count")
	if before.UID != after.UID || restarts(after) != 0 {
		s.t.Errorf("the pod restarted %d times", restarts(after))
	}
}

// killEvery kills the server and the keeper's worker of the first node, now and after each interval, until stop is
// called or the check is over. stop returns how often; the server may not answer yet then.
func (s *suite) killEvery(interval time.Duration) (stop func() int) {
	n := s.Nodes[0]
	ctx, cancel := context.WithCancel(s.t.Context())
	kills, ended := 0, make(chan struct{})
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			n.Gantry.Restart(syscall.SIGKILL)
			n.KillWorker()
			kills++
			select {
			case <-ctx.Done():
			case <-time.After(interval):
			}
		}
	}()
	s.t.Cleanup(func() { cancel(); <-ended })
	return func() int {
		cancel()
		<-ended
		return kills
	}
}

// killsUnderLoad kills the server and the keeper's worker every 20 seconds for as long as the work takes.
func killsUnderLoad(s *suite) {
	s.apply(countingPod)
	s.apply(webDeployment)
	s.ready("count")
	s.kubectl("rollout", "status", "deployment/web", "--timeout=170s")
	log := s.followed("count")
	killed := s.killEvery(20 * time.Second)
	s.apply(`
apiVersion: batch/v1
kind: Job
metadata: {name: work}
spec:
  completions: 50
  parallelism: 8
  backoffLimit: 0
  template: {spec: {restartPolicy: Never, containers: [{name: work, image: $BUSYBOX, command: [sh, -c, "echo begin; sleep 1; echo end"]}]}}
`)
	s.kubectl("set", "env", "deployment/web", "VERSION=2")
	s.inOrder(log, 3000)
	s.kubectl("rollout", "status", "deployment/web", "--timeout=300s")
	s.kubectl("wait", "--for=condition=complete", "job/work", "--timeout=400s")
	s.t.Logf("killed %d times", killed())
	s.eventually("the kubelet reaches gantry again", func(ctx context.Context) error {
		// The kubelet's answer is a success, whose text says that it could not.
		out, err := s.TryKubectl(ctx, "", "-n", s.namespace, "logs", "count", "--tail=1")
		if _, bad := strconv.Atoi(strings.TrimSpace(out)); err == nil && bad != nil {
			err = fmt.Errorf("the log ends with %q", out)
		}
		return err
	})
	for _, p := range s.pods("") {
		if again(&p) {
			s.t.Errorf("%s restarted %d times", p.Name, restarts(&p))
		}
	}
	for _, p := range s.pods("job-name=work") {
		if out := s.kubectl("logs", p.Name); out != "begin\nend\n" {
			s.t.Errorf("%s wrote %q", p.Name, out)
		}
	}
}

// again says whether a container of the pod ran more than once. The kubelet counts as a restart, too, that it makes a
// container anew whose start it was not told the end of, and which never ran; where it may not start one again, no other
// kind can be.
func again(p *corev1.Pod) bool {
	return restarts(p) != 0 && p.Spec.RestartPolicy != corev1.RestartPolicyNever &&
		slices.ContainsFunc(p.Status.ContainerStatuses, func(c corev1.ContainerStatus) bool { return c.LastTerminationState.Terminated != nil })
}

// reboot cuts the node's power: its pods are the same afterwards, their containers new.
func reboot(s *suite) {
	n := s.Nodes[0]
	s.apply(countingPod)
	s.apply(webDeployment)
	s.ready("count")
	s.follow("count", 300)
	s.kubectl("rollout", "status", "deployment/web", "--timeout=170s")
	before := map[types.UID]bool{}
	for _, p := range s.pods("") {
		before[p.UID] = true
	}
	n.Reboot()
	s.eventually("the kubelet tells of a new boot", func(ctx context.Context) error {
		object, err := s.Client.CoreV1().Nodes().Get(ctx, n.Name, metav1.GetOptions{})
		if err == nil && object.Status.NodeInfo.BootID != n.BootID() {
			err = fmt.Errorf("boot %s, want %s", object.Status.NodeInfo.BootID, n.BootID())
		}
		return err
	})
	n.WaitReady()
	s.waitPod("count", "runs again", func(p *corev1.Pod) bool { return restarts(p) == 1 && isReady(p) })
	s.follow("count", 10)
	if out := s.kubectl("logs", "count", "--previous", "--limit-bytes=4"); out != "1\n2\n" {
		s.t.Errorf("the log of the life before begins with %q", out)
	}
	s.kubectl("rollout", "status", "deployment/web", "--timeout=170s")
	s.eventually("the Deployment's pods answer", func(context.Context) error {
		for _, p := range s.pods("app=web") {
			if restarts(&p) != 1 || !isReady(&p) {
				return fmt.Errorf("%s restarted %d times, ready: %t", p.Name, restarts(&p), isReady(&p))
			}
		}
		return nil
	})
	for _, p := range s.pods("") {
		if !before[p.UID] {
			s.t.Errorf("pod %s is another one", p.Name)
		}
	}
}

func drain(s *suite) {
	n := s.Nodes[0]
	s.apply(webDeployment)
	s.kubectl("rollout", "status", "deployment/web", "--timeout=170s")
	s.Kubectl(s.t, "drain", n.Name, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=170s")
	began := time.Now()
	s.nothing("sandbox in use", n, "pods", "-q", "--state", "ready")
	s.t.Logf("no sandbox is in use %.1f s after the drain", time.Since(began).Seconds())
	// The kubelet removes sandboxes with its garbage, once a minute.
	s.nothing("sandbox", n, "pods", "-q")
	s.t.Logf("no sandbox is there %.1f s after the drain", time.Since(began).Seconds())
	s.Kubectl(s.t, "uncordon", n.Name)
	s.kubectl("rollout", "status", "deployment/web", "--timeout=170s")
	list, err := s.Client.CoreV1().Nodes().List(s.t.Context(), metav1.ListOptions{})
	if err != nil || len(list.Items) != len(s.Nodes) || list.Items[0].Spec.Unschedulable {
		s.t.Errorf("nodes %v, %v", list, err)
	}
}

// nothing waits until crictl prints nothing.
func (s *suite) nothing(what string, n *kube.Node, args ...string) {
	s.t.Helper()
	s.eventually("no "+what+" on the node", func(context.Context) error {
		out, err := n.Crictl(args...)
		if err == nil && strings.TrimSpace(out) != "" {
			err = fmt.Errorf("there are\n%s", out)
		}
		return err
	})
}
