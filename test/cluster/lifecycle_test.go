package cluster_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"gantry/test/cluster/kube"
)

// probePod is a pod with agnhost's server, which answers HTTP, TCP and gRPC health checks.
func probePod(probe string) string {
	return `
apiVersion: v1
kind: Pod
metadata: {name: pod}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: $AGNHOST
    args: [netexec, --http-port=8080]
    ` + probe + "\n"
}

func probes(t *testing.T, c *kube.Cluster) {
	for name, probe := range map[string]string{
		"exec":     `readinessProbe: {exec: {command: [test, -x, /agnhost]}, periodSeconds: 1}`,
		"HTTP":     `readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}`,
		"TCP":      `readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}`,
		"start-up": `startupProbe: {exec: {command: [sh, -c, "test $(cat /proc/uptime | cut -d. -f1) -gt 0"]}, periodSeconds: 1}`,
		"post-start": `lifecycle: {postStart: {exec: {command: [sh, -c, "echo up > /tmp/up"]}}}` +
			"\n    readinessProbe: {exec: {command: [cat, /tmp/up]}, periodSeconds: 1}",
	} {
		check(t, c, name+" makes a pod ready", func(s *suite) {
			s.apply(probePod(probe))
			s.ready("pod")
		})
	}
	check(t, c, "gRPC makes a pod ready", func(s *suite) {
		s.apply(strings.Replace(probePod(`readinessProbe: {grpc: {port: 5000}, periodSeconds: 1}`),
			"[netexec, --http-port=8080]", "[grpc-health-checking]", 1))
		s.ready("pod")
	})
	check(t, c, "a readiness probe that fails takes the pod out", func(s *suite) {
		s.apply(probePod(`readinessProbe: {exec: {command: [test, "!", -e, /tmp/off]}, periodSeconds: 1, failureThreshold: 1}`))
		s.ready("pod")
		s.exec("pod", "touch /tmp/off")
		s.waitPod("pod", "is not ready", func(p *corev1.Pod) bool { return !isReady(p) })
		s.exec("pod", "rm /tmp/off")
		s.ready("pod")
	})
	for name, probe := range map[string]string{
		"exec": `livenessProbe: {exec: {command: [test, "!", -e, /tmp/off]}, periodSeconds: 1, failureThreshold: 1}`,
		"HTTP": `livenessProbe: {httpGet: {path: /, port: 9}, initialDelaySeconds: 2, periodSeconds: 1, failureThreshold: 1}`,
	} {
		check(t, c, "a liveness probe by "+name+" that fails restarts the container", func(s *suite) {
			s.apply(probePod(probe))
			s.ready("pod")
			if name == "exec" {
				s.exec("pod", "touch /tmp/off")
			}
			s.waitPod("pod", "was restarted", func(p *corev1.Pod) bool { return restarts(p) > 0 })
		})
	}
}

func restarts(p *corev1.Pod) int32 {
	var n int32
	for _, c := range p.Status.ContainerStatuses {
		n += c.RestartCount
	}
	return n
}

func termination(t *testing.T, c *kube.Cluster) {
	check(t, c, "an exit restarts the container, ever later", func(s *suite) {
		s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: pod}
spec: {containers: [{name: main, image: $BUSYBOX, command: ["false"]}]}
`)
		p := s.waitPod("pod", "backs off", func(p *corev1.Pod) bool {
			return restarts(p) > 0 && p.Status.ContainerStatuses[0].State.Waiting != nil &&
				p.Status.ContainerStatuses[0].State.Waiting.Reason == "CrashLoopBackOff"
		})
		if last := p.Status.ContainerStatuses[0].LastTerminationState.Terminated; last == nil || last.ExitCode != 1 || last.Reason != "Error" {
			s.t.Errorf("last state %+v", last)
		}
	})
	check(t, c, "an OOM kill is told apart", func(s *suite) {
		s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: pod}
spec:
  restartPolicy: Never
  containers:
  - name: main
    image: $BUSYBOX
    command: [sh, -c, "exec tail /dev/zero"]
    resources: {limits: {memory: 20Mi}}
`)
		p := s.waitPod("pod", "has failed", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
		if end := p.Status.ContainerStatuses[0].State.Terminated; end.Reason != "OOMKilled" || end.ExitCode != 137 {
			s.t.Errorf("reason %q, exit code %d", end.Reason, end.ExitCode)
		}
	})
	check(t, c, "preStop runs and SIGTERM has its grace", func(s *suite) {
		s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: pod}
spec:
  terminationGracePeriodSeconds: 20
  containers:
  - name: main
    image: $BUSYBOX
    command: [sh, -c, "trap 'echo term >> /dev/termination-log; sleep 1; exit 0' TERM; while :; do sleep 0.1; done"]
    lifecycle: {preStop: {exec: {command: [sh, -c, "echo before >> /dev/termination-log; sleep 1"]}}}
`)
		s.ready("pod")
		message := make(chan string, 1)
		go func() { message <- s.lastMessage("pod") }()
		s.kubectl("delete", "pod", "pod", "--wait=true")
		if got := <-message; got != "before\nterm\n" {
			s.t.Errorf("termination message %q", got)
		}
	})
	check(t, c, "who ignores SIGTERM is killed after the grace period", func(s *suite) {
		s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: pod}
spec:
  terminationGracePeriodSeconds: 3
  containers: [{name: main, image: $BUSYBOX, command: [sh, -c, "trap '' TERM; while :; do sleep 0.1; done"]}]
`)
		s.ready("pod")
		start := time.Now()
		s.kubectl("delete", "pod", "pod", "--wait=true")
		if took := time.Since(start); took < 3*time.Second || took > 40*time.Second {
			s.t.Errorf("deleting took %s with 3 s of grace", took)
		}
	})
	check(t, c, "a deadline ends the pod", func(s *suite) {
		s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: pod}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 20
  activeDeadlineSeconds: 4
  containers:
  - {name: main, image: $BUSYBOX, command: [sh, -c, "trap 'echo got term; exit 0' TERM; while :; do sleep 0.1; done"]}
`)
		p := s.waitPod("pod", "has missed its deadline", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
		if p.Status.Reason != "DeadlineExceeded" {
			s.t.Errorf("reason %q", p.Status.Reason)
		}
	})
	check(t, c, "a failing init container fails the pod", func(s *suite) {
		s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: pod}
spec:
  restartPolicy: Never
  initContainers: [{name: bad, image: $BUSYBOX, command: [sh, -c, "echo no; exit 9"]}]
  containers: [{name: main, image: $BUSYBOX, command: [echo, never]}]
`)
		p := s.waitPod("pod", "has failed", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
		if end := p.Status.InitContainerStatuses[0].State.Terminated; end == nil || end.ExitCode != 9 {
			s.t.Errorf("init container %+v", p.Status.InitContainerStatuses[0].State)
		}
		if out := s.kubectl("logs", "pod", "-c", "bad"); out != "no\n" {
			s.t.Errorf("it wrote %q", out)
		}
	})
	check(t, c, "a termination message falls back to the log", func(s *suite) {
		s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: pod}
spec:
  restartPolicy: Never
  containers: [{name: main, image: $BUSYBOX, terminationMessagePolicy: FallbackToLogsOnError, command: [sh, -c, "echo why; exit 4"]}]
`)
		p := s.waitPod("pod", "has failed", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
		if end := p.Status.ContainerStatuses[0].State.Terminated; end.Message != "why\n" || end.ExitCode != 4 {
			s.t.Errorf("message %q, exit code %d", end.Message, end.ExitCode)
		}
	})
	for name, want := range refusals {
		check(t, c, name, func(s *suite) {
			s.apply(want.manifest)
			s.waitPod("pod", "says why it does not run", func(p *corev1.Pod) bool {
				for _, st := range p.Status.ContainerStatuses {
					if st.State.Waiting != nil && st.State.Waiting.Reason == want.reason {
						return true
					}
				}
				return false
			})
		})
	}
}

// refusals are pods that cannot run, and the reason that their owner sees.
var refusals = map[string]struct{ manifest, reason string }{
	"an image that does not exist": {`
{apiVersion: v1, kind: Pod, metadata: {name: pod}, spec: {containers: [{name: main, image: "10.77.0.1:5000/none:1"}]}}`, "ErrImagePull"},
	"an image that may not be pulled": {`
{apiVersion: v1, kind: Pod, metadata: {name: pod}, spec: {containers: [{name: main, image: "10.77.0.1:5000/none:2", imagePullPolicy: Never}]}}`, "ErrImageNeverPull"},
	"a reference that is none": {`
{apiVersion: v1, kind: Pod, metadata: {name: pod}, spec: {containers: [{name: main, image: "UPPER:1"}]}}`, "InvalidImageName"},
	"runAsNonRoot with an image of root": {`
{apiVersion: v1, kind: Pod, metadata: {name: pod}, spec: {securityContext: {runAsNonRoot: true}, containers: [{name: main, image: $BUSYBOX, command: [sleep, "9"]}]}}`, "CreateContainerConfigError"},
	"a command that is not there": {`
{apiVersion: v1, kind: Pod, metadata: {name: pod}, spec: {restartPolicy: Always, containers: [{name: main, image: $BUSYBOX, command: [/nothing]}]}}`, "CreateContainerError"},
	"a config map that is missing": {`
{apiVersion: v1, kind: Pod, metadata: {name: pod}, spec: {containers: [{name: main, image: $BUSYBOX, envFrom: [{configMapRef: {name: none}}]}]}}`, "CreateContainerConfigError"},
}

// lastMessage watches a pod until it goes and returns the last termination message it had.
func (s *suite) lastMessage(name string) string {
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	w, err := s.Client.CoreV1().Pods(s.namespace).Watch(ctx, only(name))
	if err != nil {
		return fmt.Sprint(err)
	}
	defer w.Stop()
	message := ""
	for event := range w.ResultChan() {
		p, ok := event.Object.(*corev1.Pod)
		if !ok {
			continue
		}
		for _, st := range p.Status.ContainerStatuses {
			if st.State.Terminated != nil {
				message = st.State.Terminated.Message
			}
		}
		if event.Type == "DELETED" {
			break
		}
	}
	return message
}
