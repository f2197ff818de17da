package lifecycle

import (
	"fmt"
	"strconv"
	"time"

	"github.com/containerd/errdefs"

	"gantry/internal/pod"
)

// The annotations by which a pod bounds the logs of its containers: bytes a second, bytes, and a
// duration such as 5s. What is wider than the node's own bound changes nothing.
const (
	AnnotationLogRate     = "gantry/log-rate"
	AnnotationLogSize     = "gantry/log-size"
	AnnotationLogFullWait = "gantry/log-full-wait"
)

// logBounds are the node's, made narrower by a pod's annotations; nil where there is no bound.
func logBounds(node pod.LogBounds, annotations map[string]string) (*pod.LogBounds, error) {
	b := node
	for name, of := range map[string]*int64{AnnotationLogRate: &b.Rate, AnnotationLogSize: &b.Size} {
		text, ok := annotations[name]
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || n <= 0 {
			return nil, fmt.Errorf("annotation %s: %q is no number of bytes above 0: %w", name, text, errdefs.ErrInvalidArgument)
		}
		*of = narrower(*of, n)
	}
	if text, ok := annotations[AnnotationLogFullWait]; ok {
		d, err := time.ParseDuration(text)
		if err != nil || d <= 0 {
			return nil, fmt.Errorf("annotation %s: %q is no duration above 0: %w", AnnotationLogFullWait, text, errdefs.ErrInvalidArgument)
		}
		b.FullWait = narrower(b.FullWait, d)
	}
	if b == (pod.LogBounds{}) {
		return nil, nil
	}
	return &b, nil
}

// narrower is the smaller bound, where 0 is none.
func narrower[T int64 | time.Duration](node, asked T) T {
	if node == 0 {
		return asked
	}
	return min(node, asked)
}
