package cluster_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"

	"gantry/test/cluster/kube"
)

// only selects one object by name.
func only(name string) metav1.ListOptions {
	return metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", name).String()}
}

const countingPod = `
apiVersion: v1
kind: Pod
metadata: {name: count}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: $BUSYBOX
    command: [sh, -c, "i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done"]
`

func logs(t *testing.T, c *kube.Cluster) {
	check(t, c, "logs: tail, since and time stamps", func(s *suite) {
		s.apply(countingPod)
		s.ready("count")
		s.eventually("ten lines", func(context.Context) error {
			if n := strings.Count(s.kubectl("logs", "count", "--tail=10"), "\n"); n != 10 {
				return fmt.Errorf("%d lines", n)
			}
			return nil
		})
		stamp, _, _ := strings.Cut(s.kubectl("logs", "count", "--tail=1", "--timestamps"), " ")
		if at, err := time.Parse(time.RFC3339Nano, stamp); err != nil || time.Since(at) > time.Minute {
			s.t.Errorf("time stamp %q, %v", stamp, err)
		}
		if out := s.kubectl("logs", "count", "--since-time="+time.Now().Add(time.Hour).Format(time.RFC3339)); out != "" {
			s.t.Errorf("logs of the future: %q", out)
		}
		if out := s.kubectl("logs", "count", "--limit-bytes=4"); out != "1\n2\n" {
			s.t.Errorf("four bytes are %q", out)
		}
	})
	check(t, c, "logs: follow sees every line in order", func(s *suite) {
		s.apply(countingPod)
		s.ready("count")
		s.follow("count", 300)
	})
	check(t, c, "logs: of the container before", func(s *suite) {
		s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: pod}
spec: {containers: [{name: main, image: $BUSYBOX, command: [sh, -c, "echo life; exit 1"]}]}
`)
		s.waitPod("pod", "was restarted", func(p *corev1.Pod) bool { return restarts(p) > 0 })
		// The kubelet keeps the last dead container alone: the one that a status named may be gone.
		s.eventually("the log of the life before", func(ctx context.Context) error {
			out, err := s.TryKubectl(ctx, "", "-n", s.namespace, "logs", "pod", "--previous")
			if err == nil && out != "life\n" {
				err = fmt.Errorf("previous log %q", out)
			}
			return err
		})
	})
	check(t, c, "logs: every container, prefixed", func(s *suite) {
		s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: pod}
spec:
  restartPolicy: Never
  containers:
  - {name: a, image: $BUSYBOX, command: [echo, from a]}
  - {name: b, image: $BUSYBOX, command: [sh, -c, "echo from b >&2"]}
`)
		out := s.finished("pod", corev1.PodSucceeded)
		if !strings.Contains(out, "from a\n") || !strings.Contains(out, "from b\n") {
			s.t.Errorf("logs %q", out)
		}
	})
	check(t, c, "logs: rotation by the kubelet loses no line for a follower", rotation)
}

// follow reads n lines of a counting pod's log and checks their order.
func (s *suite) follow(pod string, n int) {
	s.t.Helper()
	s.inOrder(s.followed(pod), n)
}

// follower is a pod's log that is read as it grows.
type follower struct {
	*bufio.Reader
	io.Closer
}

// followed opens a pod's log and waits for its first line: what disturbs the node later does not disturb the opening,
// for which the kubelet asks the runtime.
func (s *suite) followed(pod string) follower {
	s.t.Helper()
	stream, err := s.Client.CoreV1().Pods(s.namespace).GetLogs(pod, &corev1.PodLogOptions{Follow: true}).Stream(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	lines := bufio.NewReader(stream)
	if _, err := lines.Peek(1); err != nil {
		stream.Close()
		s.t.Fatalf("the log has no first line: %v", err)
	}
	return follower{Reader: lines, Closer: stream}
}

// inOrder reads n lines of a counting pod's log, and closes it.
func (s *suite) inOrder(log follower, n int) {
	s.t.Helper()
	defer log.Close()
	lines := bufio.NewScanner(log)
	for want := 1; want <= n; want++ {
		if !lines.Scan() {
			s.t.Fatalf("the log ends before line %d: %v", want, lines.Err())
		}
		number, _, _ := strings.Cut(lines.Text(), " ")
		if number != strconv.Itoa(want) {
			s.t.Fatalf("line %d is %.60q", want, lines.Text())
		}
	}
}

// rotation writes more than the kubelet's limit of a log file while somebody follows.
func rotation(s *suite) {
	s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: count}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: $BUSYBOX
    command: [sh, -c, "p=$(head -c 4000 /dev/zero | tr '\\0' x); i=0; while test $i -lt 6000; do i=$((i+1)); echo $i $p; test $((i % 10)) -ne 0 || sleep 0.02; done; exec sleep 1000"]
`)
	p := s.ready("count")
	s.follow("count", 6000)
	s.eventually("a rotated file", func(context.Context) error {
		out, err := s.Nodes[0].Run("sh", "-c", fmt.Sprintf("ls /var/log/pods/%s_count_%s/main", s.namespace, p.UID))
		if err == nil && strings.Count(out, "\n") < 2 {
			err = fmt.Errorf("files %q", out)
		}
		return err
	})
}
