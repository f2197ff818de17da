package lifecycle

import (
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"gantry/internal/pod"
)

func TestPodsNarrowTheBoundsOfTheirLogs(t *testing.T) {
	node := pod.LogBounds{Rate: 1000, FullWait: 30 * time.Second}
	for rule, c := range map[string]struct {
		node pod.LogBounds
		asks map[string]string
		want *pod.LogBounds // nil: none
		bad  bool
	}{
		"no bound":                    {},
		"the node's":                  {node: node, want: &node},
		"narrower than the node's":    {node, map[string]string{AnnotationLogRate: "10", AnnotationLogFullWait: "1s"}, &pod.LogBounds{Rate: 10, FullWait: time.Second}, false},
		"wider than the node's":       {node, map[string]string{AnnotationLogRate: "5000"}, &node, false},
		"where the node has none":     {node, map[string]string{AnnotationLogSize: "7"}, &pod.LogBounds{Rate: 1000, Size: 7, FullWait: 30 * time.Second}, false},
		"what is no number":           {node, map[string]string{AnnotationLogRate: "1k"}, nil, true},
		"a bound of nothing":          {node, map[string]string{AnnotationLogSize: "0"}, nil, true},
		"what is no duration":         {node, map[string]string{AnnotationLogFullWait: "5"}, nil, true},
		"a wait that is no wait":      {node, map[string]string{AnnotationLogFullWait: "0s"}, nil, true},
		"annotations of others aside": {asks: map[string]string{"example.org/log-rate": "1"}},
	} {
		t.Run(rule, func(t *testing.T) {
			got, err := logBounds(c.node, c.asks)
			if c.bad != errdefs.IsInvalidArgument(err) || (got == nil) != (c.want == nil) || got != nil && *got != *c.want {
				t.Errorf("%+v, %v; want %+v", got, err, c.want)
			}
		})
	}
}
