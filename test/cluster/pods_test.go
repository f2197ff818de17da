package cluster_test

import (
	_ "embed"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"gantry/test/cluster/kube"
)

// selfChecks are pods that look at themselves: what they print is what the test wants.
//
//go:embed testdata/selfchecks.yaml
var selfChecks []byte

// selfCheck is a pod named "pod" and the objects it needs. Its first container runs Run in a shell.
type selfCheck struct {
	Name    string          `json:"name"`
	Objects string          `json:"objects"` // manifest of what the pod refers to
	Labels  string          `json:"labels"`  // of the pod's metadata, as YAML
	Spec    string          `json:"spec"`    // of the pod, without its containers, as YAML
	More    string          `json:"more"`    // fields of the container, as YAML
	Run     string          `json:"run"`
	Want    string          `json:"want"` // lines that the log must have, in any order
	Phase   corev1.PodPhase `json:"phase"`
}

func (k selfCheck) manifest() string {
	b := new(strings.Builder)
	b.WriteString("apiVersion: v1\nkind: Pod\nmetadata:\n  name: pod\n")
	b.WriteString(indent(k.Labels, 2))
	b.WriteString("spec:\n  restartPolicy: Never\n  terminationGracePeriodSeconds: 1\n")
	b.WriteString(indent(k.Spec, 2))
	b.WriteString("  containers:\n  - name: main\n    image: $BUSYBOX\n    command: [sh, -c]\n    args:\n    - |\n")
	b.WriteString(indent(k.Run, 6))
	b.WriteString(indent(k.More, 4))
	return b.String()
}

func indent(text string, by int) string {
	b := new(strings.Builder)
	for line := range strings.Lines(text) {
		b.WriteString(strings.Repeat(" ", by) + strings.TrimRight(line, "\n") + "\n")
	}
	return b.String()
}

func podsThatCheckThemselves(t *testing.T, c *kube.Cluster) {
	var all []selfCheck
	if err := yaml.UnmarshalStrict(selfChecks, &all); err != nil {
		t.Fatal(err)
	}
	for _, k := range all {
		check(t, c, k.Name, func(s *suite) {
			if k.Objects != "" {
				s.apply(k.Objects)
			}
			s.apply(k.manifest())
			if k.Phase == "" {
				k.Phase = corev1.PodSucceeded
			}
			out := s.finished("pod", k.Phase)
			for want := range strings.Lines(k.Want) {
				if want = strings.TrimSpace(want); !strings.Contains("\n"+out, "\n"+want+"\n") {
					s.t.Errorf("the pod did not write %q but\n%s", want, out)
				}
			}
		})
	}
}
