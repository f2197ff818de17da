package cluster_test

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"gantry/test/cluster/kube"
)

const sleeper = `
apiVersion: v1
kind: Pod
metadata: {name: pod}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: $BUSYBOX
    command: [sleep, "1000"]
    resources: {requests: {cpu: 50m, memory: 32Mi}, limits: {cpu: 100m, memory: 64Mi}}
`

func resources(t *testing.T, c *kube.Cluster) {
	check(t, c, "a resize in place reaches the cgroup without a restart", func(s *suite) {
		s.apply(sleeper)
		s.ready("pod")
		s.kubectl("patch", "pod", "pod", "--subresource", "resize", "--patch",
			`{"spec":{"containers":[{"name":"main","resources":{"requests":{"cpu":"100m"},"limits":{"cpu":"300m","memory":"96Mi"}}}]}}`)
		s.eventually("the limits in the container", func(context.Context) error {
			out := s.exec("pod", `cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null; cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null; true`)
			if !strings.Contains(out, "100663296") || !strings.Contains(out, "30000") {
				return fmt.Errorf("limits %q", out)
			}
			return nil
		})
		p := s.waitPod("pod", "reports its new limits", func(p *corev1.Pod) bool {
			r := p.Status.ContainerStatuses[0].Resources
			return r != nil && r.Limits.Memory().String() == "96Mi" && r.Limits.Cpu().String() == "300m"
		})
		if restarts(p) != 0 {
			s.t.Errorf("%d restarts", restarts(p))
		}
	})
	// Without PodAndContainerStatsFromCRI the kubelet asks cAdvisor, which knows no pod of gantry's.
	check(t, c, "the summary has CPU, memory and file system of a pod", func(s *suite) { s.summarised(false) })
	check(t, c, "kubectl top shows pods, containers and the node", top)
	check(t, c, "an empty directory over its limit evicts the pod", func(s *suite) {
		s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: pod}
spec:
  terminationGracePeriodSeconds: 1
  volumes: [{name: data, emptyDir: {sizeLimit: 2Mi}}]
  containers:
  - name: main
    image: $BUSYBOX
    command: [sh, -c, "dd if=/dev/zero of=/d/x bs=1M count=10; exec sleep 1000"]
    volumeMounts: [{name: data, mountPath: /d}]
`)
		p := s.waitPod("pod", "was evicted", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
		if p.Status.Reason != "Evicted" {
			s.t.Errorf("reason %q", p.Status.Reason)
		}
	})
	check(t, c, "a writable layer over its limit evicts the pod", func(s *suite) {
		s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: pod}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: $BUSYBOX
    command: [sh, -c, "dd if=/dev/zero of=/x bs=1M count=20; exec sleep 1000"]
    resources: {limits: {ephemeral-storage: 5Mi}}
`)
		p := s.waitPod("pod", "was evicted", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
		if p.Status.Reason != "Evicted" {
			s.t.Errorf("reason %q", p.Status.Reason)
		}
	})
	check(t, c, "a host port answers on the node's address", func(s *suite) {
		s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: web, image: $WEB, ports: [{containerPort: 80, hostPort: 18080}], readinessProbe: {tcpSocket: {port: 80}, periodSeconds: 1}}]
`)
		s.ready("web")
		s.eventually("the page", func(context.Context) error {
			out, err := s.Nodes[0].Run("curl", "-sf", "http://"+s.Nodes[0].IP+":18080/")
			if err == nil && !strings.Contains(out, "lab's web image") {
				err = fmt.Errorf("answer %q", out)
			}
			return err
		})
	})
}

// top reads what Kubernetes' metrics server has from the kubelet.
func top(s *suite) {
	s.apply(strings.Replace(sleeper, `[sleep, "1000"]`, `[sh, -c, "while :; do :; done"]`, 1))
	s.ready("pod")
	for what, args := range map[string][]string{
		"the pod": {"pod", "pod"}, "its container": {"pod", "pod", "--containers"}, "the node": {"node", s.Nodes[0].Name},
	} {
		s.eventually("figures of "+what, func(ctx context.Context) error {
			out, err := s.TryKubectl(ctx, "", slices.Concat([]string{"top"}, args, []string{"-n", s.namespace, "--no-headers"})...)
			if err == nil && !busy.MatchString(out) {
				err = fmt.Errorf("%q", out)
			}
			return err
		})
	}
}

// busy is a line of kubectl top with CPU and memory.
var busy = regexp.MustCompile(`\s[1-9][0-9]*m\s+([0-9]+%\s+)?[0-9]+Mi`)

func (s *suite) summarised(fromRuntime bool) {
	s.apply(sleeper)
	s.ready("pod")
	s.exec("pod", "dd if=/dev/zero of=/tmp/x bs=1M count=3 2>/dev/null")
	s.eventually("figures", func(ctx context.Context) error { return s.summary(ctx, "pod", fromRuntime) })
}

// summary checks the kubelet's figures of a pod: some it has only where it asks the runtime for them.
func (s *suite) summary(ctx context.Context, name string, fromRuntime bool) error {
	data, err := s.Client.CoreV1().RESTClient().Get().Resource("nodes").Name(s.Nodes[0].Name).SubResource("proxy", "stats", "summary").DoRaw(ctx)
	if err != nil {
		return err
	}
	var all stats.Summary
	if err := json.Unmarshal(data, &all); err != nil {
		return err
	}
	for _, p := range all.Pods {
		if p.PodRef.Name != name || p.PodRef.Namespace != s.namespace {
			continue
		}
		switch {
		case p.CPU == nil || p.CPU.UsageCoreNanoSeconds == nil || *p.CPU.UsageCoreNanoSeconds == 0:
			return fmt.Errorf("no CPU of the pod")
		case p.Memory == nil || p.Memory.WorkingSetBytes == nil || *p.Memory.WorkingSetBytes == 0:
			return fmt.Errorf("no memory of the pod")
		case fromRuntime && (p.Network == nil || p.Network.RxBytes == nil):
			return fmt.Errorf("no network of the pod")
		case len(p.Containers) != 1 || p.Containers[0].Rootfs == nil || p.Containers[0].Rootfs.UsedBytes == nil || *p.Containers[0].Rootfs.UsedBytes < 3<<20:
			return fmt.Errorf("no file system of the container")
		case fromRuntime && (p.Containers[0].Swap == nil || p.Containers[0].Swap.SwapUsageBytes == nil):
			return fmt.Errorf("no swap of the container")
		}
		return nil
	}
	return fmt.Errorf("the pod is not in the summary")
}
