package cluster_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry/test/cluster/kube"
)

// patience is how long anything in the cluster may take to become true. It is generous: what is slow
// is measured elsewhere.
const patience = 3 * time.Minute

// suite is a check's access to the cluster, in a namespace of its own.
type suite struct {
	*kube.Cluster
	t         testing.TB
	namespace string
}

// check runs f beside others, in a namespace that is removed when it ends.
func check(t *testing.T, c *kube.Cluster, name string, f func(s *suite)) {
	t.Helper()
	expected := listed[name]
	if expected != nil {
		expected.met = true
	}
	t.Run(name, func(t *testing.T) {
		t.Parallel()
		limit <- struct{}{}
		defer func() { <-limit }()
		s := newSuite(t, c)
		if expected != nil {
			s.refused(expected.words, f)
			return
		}
		f(s)
	})
}

// limit bounds the checks that run at once: a node of two cores is to be busy, not swamped.
var limit = make(chan struct{}, 6)

func newSuite(t *testing.T, c *kube.Cluster) *suite {
	t.Helper()
	object, err := c.Client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "check-"},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatalf("make a namespace: %v", err)
	}
	s := &suite{Cluster: c, t: t, namespace: object.Name}
	t.Cleanup(func() {
		if t.Failed() {
			s.report()
		}
		err := c.Client.CoreV1().Namespaces().Delete(context.Background(), s.namespace, metav1.DeleteOptions{})
		if err != nil {
			t.Errorf("remove the namespace: %v", err)
		}
	})
	s.eventually("the default service account", func(ctx context.Context) error {
		_, err := c.Client.CoreV1().ServiceAccounts(s.namespace).Get(ctx, "default", metav1.GetOptions{})
		return err
	})
	return s
}

// report logs what an operator would look at.
func (s *suite) report() {
	for _, args := range [][]string{{"get", "pods", "-o", "wide"}, {"get", "events", "--sort-by=.lastTimestamp"}, {"describe", "pods"}} {
		out, err := s.TryKubectl(context.Background(), "", append(args, "-n", s.namespace)...)
		s.t.Logf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// kubectl runs kubectl in the namespace; it must exit 0.
func (s *suite) kubectl(args ...string) string {
	s.t.Helper()
	return s.Kubectl(s.t, append([]string{"-n", s.namespace}, args...)...)
}

// apply makes the objects of a manifest, in which $NAME is replaced by the registry's image of that name.
func (s *suite) apply(manifest string) {
	s.t.Helper()
	manifest = expand(manifest, "$BUSYBOX", kube.Busybox, "$WEB", kube.Web, "$AGNHOST", kube.Agnhost, "$LOCKED", kube.Locked, "$MIRRORED", kube.Mirrored,
		"$NAMESPACE", s.namespace)
	if _, err := s.TryKubectl(s.t.Context(), manifest, "apply", "-n", s.namespace, "-f", "-"); err != nil {
		s.t.Fatalf("apply: %v\n%s", err, manifest)
	}
}

// expand replaces names in text by values: name, value, name, value.
func expand(text string, pairs ...string) string { return strings.NewReplacer(pairs...).Replace(text) }

// eventually waits until f returns nil.
func (s *suite) eventually(what string, f func(ctx context.Context) error) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	var last error
	for tick := time.NewTicker(250 * time.Millisecond); ; {
		err := f(ctx)
		if err == nil {
			return
		}
		if ctx.Err() == nil {
			last = err // not that the time is up, which is known
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			s.t.Fatalf("%s: %v", what, last)
		}
	}
}

func (s *suite) pod(ctx context.Context, name string) (*corev1.Pod, error) {
	return s.Client.CoreV1().Pods(s.namespace).Get(ctx, name, metav1.GetOptions{})
}

// waitPod waits until a pod is as f wants it, and returns it.
func (s *suite) waitPod(name, what string, f func(*corev1.Pod) bool) *corev1.Pod {
	s.t.Helper()
	var found *corev1.Pod
	s.eventually("pod "+name+" "+what, func(ctx context.Context) error {
		p, err := s.pod(ctx, name)
		if err != nil {
			return err
		}
		if !f(p) {
			return fmt.Errorf("phase %s, reason %q", p.Status.Phase, p.Status.Reason)
		}
		found = p
		return nil
	})
	return found
}

// ready waits until a pod is Ready.
func (s *suite) ready(name string) *corev1.Pod {
	s.t.Helper()
	return s.waitPod(name, "is ready", isReady)
}

func isReady(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// finished waits until a pod has ended, and returns its only container's output.
func (s *suite) finished(name string, phase corev1.PodPhase) string {
	s.t.Helper()
	p := s.waitPod(name, "has ended", func(p *corev1.Pod) bool {
		return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
	})
	out := s.kubectl("logs", name, "--all-containers")
	if p.Status.Phase != phase {
		s.t.Fatalf("pod %s is %s, want %s; it wrote:\n%s", name, p.Status.Phase, phase, out)
	}
	return out
}

// exec runs a shell command in a pod's first container and returns what it prints.
func (s *suite) exec(pod, command string) string {
	s.t.Helper()
	return s.kubectl("exec", pod, "--", "sh", "-c", command)
}

// ip waits for a pod's address.
func (s *suite) ip(name string) string {
	s.t.Helper()
	return s.waitPod(name, "has an address", func(p *corev1.Pod) bool { return p.Status.PodIP != "" }).Status.PodIP
}
