package cluster_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry/internal/labimage"
	"gantry/test/cluster/kube"
)

const webDeployment = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  strategy: {rollingUpdate: {maxUnavailable: 0, maxSurge: 1}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 5
      containers:
      - name: web
        image: $WEB
        env: [{name: VERSION, value: "1"}]
        readinessProbe: {httpGet: {path: /, port: 80}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 8080, targetPort: 80}]}
`

func workloads(t *testing.T, c *kube.Cluster) {
	check(t, c, "a Deployment rolls over without a gap", rollingUpdate)
	check(t, c, "a DaemonSet runs on every node", daemonSet)
	check(t, c, "a Job runs its completions, some at once", func(s *suite) {
		s.apply(`
apiVersion: batch/v1
kind: Job
metadata: {name: work}
spec:
  completions: 5
  parallelism: 2
  template: {spec: {restartPolicy: Never, containers: [{name: work, image: $BUSYBOX, command: [echo, worked]}]}}
`)
		s.kubectl("wait", "--for=condition=complete", "job/work", "--timeout=120s")
	})
	check(t, c, "a Job whose pods fail is retried and gives up", func(s *suite) {
		s.apply(`
apiVersion: batch/v1
kind: Job
metadata: {name: bad}
spec:
  backoffLimit: 1
  template: {spec: {restartPolicy: Never, containers: [{name: bad, image: $BUSYBOX, command: ["false"]}]}}
`)
		s.kubectl("wait", "--for=condition=failed", "job/bad", "--timeout=150s")
		if n := len(s.pods("job-name=bad")); n != 2 {
			s.t.Errorf("%d pods, want the first and one retry", n)
		}
	})
	check(t, c, "a CronJob starts jobs", func(s *suite) {
		s.apply(`
apiVersion: batch/v1
kind: CronJob
metadata: {name: tick}
spec:
  schedule: "* * * * *"
  jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: tick, image: $BUSYBOX, command: [date]}]}}}}
`)
		s.eventually("a job that is complete", func(ctx context.Context) error {
			jobs, err := s.Client.BatchV1().Jobs(s.namespace).List(ctx, metav1.ListOptions{})
			if err != nil {
				return err
			}
			for _, j := range jobs.Items {
				if complete(&j) {
					return nil
				}
			}
			return fmt.Errorf("none of %d", len(jobs.Items))
		})
	})
	check(t, c, "a StatefulSet keeps names and volumes", statefulSet)
	check(t, c, "a Service spreads over its pods", func(s *suite) {
		s.apply(webDeployment)
		s.kubectl("rollout", "status", "deployment/web", "--timeout=150s")
		s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: client}
spec: {terminationGracePeriodSeconds: 1, containers: [{name: client, image: $BUSYBOX, command: [sleep, "1000"]}]}
`)
		s.ready("client")
		address := strings.TrimSpace(s.kubectl("get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"))
		s.eventually("the service answers", func(ctx context.Context) error {
			out, err := s.TryKubectl(ctx, "", "-n", s.namespace, "exec", "client", "--", "sh", "-c", get(address, 8080))
			if err == nil && !strings.Contains(out, labimage.Page) {
				err = fmt.Errorf("answer %q", out)
			}
			return err
		})
	})
	check(t, c, "a pod deleted by its owner leaves nothing on the node", func(s *suite) {
		s.apply(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: short}
spec:
  replicas: 2
  selector: {matchLabels: {app: short}}
  template:
    metadata: {labels: {app: short}}
    spec: {terminationGracePeriodSeconds: 1, containers: [{name: main, image: $BUSYBOX, command: [sleep, "1000"]}]}
`)
		s.kubectl("rollout", "status", "deployment/short", "--timeout=120s")
		s.kubectl("delete", "deployment", "short")
		s.eventually("no sandbox of the namespace", func(context.Context) error {
			out, err := s.Nodes[0].Crictl("pods", "-q", "--namespace", s.namespace)
			if err == nil && strings.TrimSpace(out) != "" {
				err = fmt.Errorf("sandboxes %s", out)
			}
			return err
		})
	})
}

// get is a shell command that fetches / of an address: busybox's wget does not know every time-out.
func get(address string, port int) string {
	return fmt.Sprintf(`printf 'GET / HTTP/1.0\r\n\r\n' | nc -w 5 %s %d`, address, port)
}

func complete(j *batchv1.Job) bool {
	for _, cond := range j.Status.Conditions {
		if cond.Type == batchv1.JobComplete && cond.Status == corev1.ConditionTrue {
			return true
		}
	}
	return false
}

func (s *suite) pods(selector string) []corev1.Pod {
	s.t.Helper()
	list, err := s.Client.CoreV1().Pods(s.namespace).List(s.t.Context(), metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		s.t.Fatal(err)
	}
	return list.Items
}

func daemonSet(s *suite) {
	s.apply(`
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: agent}
spec:
  selector: {matchLabels: {app: agent}}
  template:
    metadata: {labels: {app: agent}}
    spec: {terminationGracePeriodSeconds: 1, containers: [{name: agent, image: $BUSYBOX, command: [sleep, "1000"]}]}
`)
	s.kubectl("rollout", "status", "daemonset/agent", "--timeout=120s")
	if n := len(s.pods("app=agent")); n != len(s.Nodes) {
		s.t.Errorf("%d pods on %d nodes", n, len(s.Nodes))
	}
}

func rollingUpdate(s *suite) {
	s.apply(webDeployment)
	s.kubectl("rollout", "status", "deployment/web", "--timeout=150s")
	s.kubectl("set", "env", "deployment/web", "VERSION=2")
	s.kubectl("rollout", "status", "deployment/web", "--timeout=150s")
	s.eventually("three pods of the new version alone", func(context.Context) error {
		pods := s.pods("app=web")
		for _, p := range pods {
			if p.Spec.Containers[0].Env[0].Value != "2" {
				return fmt.Errorf("%s is old", p.Name)
			}
		}
		if len(pods) != 3 {
			return fmt.Errorf("%d pods", len(pods))
		}
		return nil
	})
	s.kubectl("rollout", "undo", "deployment/web")
	s.kubectl("rollout", "status", "deployment/web", "--timeout=150s")
}

func statefulSet(s *suite) {
	s.apply(fmt.Sprintf(`
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  serviceName: db
  replicas: 2
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: db
        image: $BUSYBOX
        command: [sh, -c, "echo $(hostname) >> /data/$(hostname); exec sleep 1000"]
        volumeMounts: [{name: data, mountPath: /data}]
      volumes: [{name: data, hostPath: {path: %s, type: DirectoryOrCreate}}]
`, "/run/lab-"+s.namespace))
	s.kubectl("rollout", "status", "statefulset/db", "--timeout=150s")
	s.kubectl("delete", "pod", "db-0")
	s.ready("db-0")
	s.eventually("the second life sees the first one's file", func(context.Context) error {
		if out := s.exec("db-0", "cat /data/db-0"); out != "db-0\ndb-0\n" {
			return fmt.Errorf("%q", out)
		}
		return nil
	})
}
