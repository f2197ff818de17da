package cluster_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"

	"gantry/test/cluster/kube"
)

// lockedPod is a pod of an image that the registry gives to who knows its password.
const lockedPod = `
apiVersion: v1
kind: Pod
metadata: {name: $POD}
spec:
  restartPolicy: Always
  terminationGracePeriodSeconds: 1
  imagePullSecrets: [$SECRETS]
  containers: [{name: main, image: $LOCKED, imagePullPolicy: Always, command: [sleep, "1000"]}]
`

func images(t *testing.T, c *kube.Cluster) {
	check(t, c, "a registry that demands a password gives an image to who has it", func(s *suite) {
		s.secret("right", kube.Password)
		s.secret("wrong", "guessed")
		s.applyLocked("stranger", "")
		s.applyLocked("impostor", "{name: wrong}")
		s.applyLocked("guest", "{name: right}")
		s.ready("guest")
		s.waitPod("stranger", "has no image", noImage)
		s.waitPod("impostor", "has no image", noImage)
		// The image is on the node now; who may not have it still may not.
		s.applyLocked("late", "")
		s.waitPod("late", "has no image", noImage)
	})
	check(t, c, "a service account's pull secret is that of its pods", func(s *suite) {
		s.secret("right", kube.Password)
		s.kubectl("patch", "serviceaccount", "default", "--patch", `{"imagePullSecrets":[{"name":"right"}]}`)
		s.applyLocked("guest", "")
		s.ready("guest")
	})
	check(t, c, "an image comes from its registry's mirror", func(s *suite) {
		s.apply(`
apiVersion: v1
kind: Pod
metadata: {name: pod}
spec: {terminationGracePeriodSeconds: 1, containers: [{name: main, image: $MIRRORED, command: [sleep, "1000"]}]}
`)
		s.ready("pod")
	})
}

func (s *suite) secret(name, password string) {
	s.t.Helper()
	s.kubectl("create", "secret", "docker-registry", name, "--docker-server="+kube.LockedHost, "--docker-username="+kube.User, "--docker-password="+password)
}

func (s *suite) applyLocked(pod, secrets string) {
	s.t.Helper()
	s.apply(expand(lockedPod, "$POD", pod, "$SECRETS", secrets))
}

func noImage(p *corev1.Pod) bool {
	for _, st := range p.Status.ContainerStatuses {
		if w := st.State.Waiting; w != nil && (w.Reason == "ErrImagePull" || w.Reason == "ImagePullBackOff") {
			return true
		}
	}
	return false
}
