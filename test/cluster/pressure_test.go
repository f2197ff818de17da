package cluster_test

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gantry/internal/labimage"
	"gantry/test/cluster/kube"
)

// A small node: MiB of its disk, of what its images and volumes must leave free, of its pods' memory, and of
// what they must leave of that.
const (
	smallDisk   = 2048
	freeDisk    = 600
	smallMemory = 700
	freeMemory  = 200
	layerSize   = 200 // of one of the images that fill it
	layers      = 7
)

// TestPressure fills a node's disk and memory, and watches what the kubelet does about it.
func TestPressure(t *testing.T) {
	c := kube.Start(t, kube.Options{Disk: smallDisk, Kubelet: fmt.Sprintf(`
evictionHard: {memory.available: %dMi, nodefs.available: %dMi, imagefs.available: %dMi}
evictionPressureTransitionPeriod: 5s
imageMinimumGCAge: 1s
systemReserved: {memory: %dMi}
enforceNodeAllocatable: [pods]
`, freeMemory, freeDisk, freeDisk, meminfo(t, "MemTotal")>>20-smallMemory)})
	s := newSuite(t, c)
	// The kubelet removes no image that it has only just seen, and would evict who did nothing meanwhile.
	kept := strings.Replace(sleeper, "spec:\n", "spec:\n  priorityClassName: system-node-critical\n", 1)
	s.apply(strings.ReplaceAll(kept, "name: pod}", "name: kept}"))
	s.ready("kept")
	for _, check := range []struct {
		name string
		run  func(*suite)
	}{
		{"a disk full of images loses those that nobody uses", imageGarbage},
		{"who fills the node's disk is evicted", diskEviction},
		{"who fills the node's memory is evicted", memoryEviction},
	} {
		t.Run(check.name, func(t *testing.T) {
			inner := &suite{Cluster: c, t: t, namespace: s.namespace}
			defer func() {
				if t.Failed() {
					inner.report()
				}
			}()
			check.run(inner)
			if p := inner.ready("kept"); restarts(p) != 0 {
				t.Errorf("the pod that did nothing restarted %d times", restarts(p))
			}
		})
	}
}

// imageGarbage fills the disk with images that no pod uses.
func imageGarbage(s *suite) {
	for i := range layers {
		name := "big" + strconv.Itoa(i) + ":1"
		img, err := bigImage(name)
		if err != nil {
			s.t.Fatal(err)
		}
		ref, err := s.Registry.Push(name, img)
		if err != nil {
			s.t.Fatal(err)
		}
		if _, err := s.Nodes[0].Crictl("pull", ref); err != nil {
			s.t.Fatal(err)
		}
	}
	s.eventually("the kubelet has removed the images", func(context.Context) error {
		out, err := s.Nodes[0].Crictl("images")
		if err == nil && strings.Contains(out, "/big") {
			err = fmt.Errorf("there are\n%s", out)
		}
		return err
	})
	if out, err := s.Nodes[0].Crictl("images"); err != nil || !strings.Contains(out, "/busybox") {
		s.t.Errorf("the image of a pod that runs is gone: %v\n%s", err, out)
	}
	s.told("EvictionThresholdMet")
	s.relieved(corev1.NodeDiskPressure)
}

// bigImage shares no layer with one of another name.
func bigImage(name string) (v1.Image, error) {
	tar, err := labimage.Tar(labimage.File("name", 0o644, name), labimage.File("zeros", 0o644, string(make([]byte, layerSize<<20))))
	if err != nil {
		return nil, err
	}
	layer, err := labimage.Layer(tar, labimage.Gzip)
	if err != nil {
		return nil, err
	}
	return labimage.Image(v1.Config{}, layer)
}

func diskEviction(s *suite) {
	s.filled("disk", "{}", 1400)
	s.evictedAndRelieved("disk", "ephemeral-storage", corev1.NodeDiskPressure)
}

func memoryEviction(s *suite) {
	s.filled("memory", "{medium: Memory}", 560)
	s.evictedAndRelieved("memory", "memory", corev1.NodeMemoryPressure)
}

// filled starts a pod that writes so many MiB into an emptyDir.
func (s *suite) filled(name, emptyDir string, mebibytes int) {
	s.t.Helper()
	s.apply(fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  terminationGracePeriodSeconds: 1
  volumes: [{name: data, emptyDir: %s}]
  containers:
  - name: main
    image: $BUSYBOX
    command: [sh, -c, "dd if=/dev/zero of=/d/x bs=1M count=%d; exec sleep 1000"]
    volumeMounts: [{name: data, mountPath: /d}]
`, name, emptyDir, mebibytes))
}

// evictedAndRelieved waits until the pod is evicted for want of a resource, and the node takes pods again
// when it is gone.
func (s *suite) evictedAndRelieved(name, resource string, pressure corev1.NodeConditionType) {
	s.t.Helper()
	s.evicted(name, resource)
	s.kubectl("delete", "pod", name)
	s.relieved(pressure)
	s.takesPods("after-" + name)
}

func (s *suite) evicted(name, resource string) {
	s.t.Helper()
	p := s.waitPod(name, "was evicted", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
	if p.Status.Reason != "Evicted" || !strings.Contains(p.Status.Message, resource) {
		s.t.Errorf("%s: reason %q, message %q", name, p.Status.Reason, p.Status.Message)
	}
}

// takesPods checks that the node does not keep its taint.
func (s *suite) takesPods(name string) {
	s.t.Helper()
	s.apply(strings.ReplaceAll(sleeper, "name: pod}", "name: "+name+"}"))
	s.ready(name)
}

// relieved waits until the node is not under pressure.
func (s *suite) relieved(kind corev1.NodeConditionType) {
	s.t.Helper()
	s.eventually(string(kind)+" ends", func(ctx context.Context) error {
		node, err := s.Client.CoreV1().Nodes().Get(ctx, s.Nodes[0].Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, cond := range node.Status.Conditions {
			if cond.Type == kind && cond.Status != corev1.ConditionFalse {
				return fmt.Errorf("it is %s: %s", cond.Status, cond.Message)
			}
		}
		return nil
	})
}

// told waits for an event of the node.
func (s *suite) told(reason string) {
	s.t.Helper()
	s.eventually("the node's event "+reason, func(ctx context.Context) error {
		events, err := s.Client.CoreV1().Events("").List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.kind=Node,reason=" + reason})
		if err == nil && len(events.Items) == 0 {
			err = fmt.Errorf("there is none")
		}
		return err
	})
}
