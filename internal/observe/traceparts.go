package observe

import (
	"context"
	"path/filepath"
	"strings"
	"sync"

	"github.com/containernetworking/cni/pkg/invoke"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"gantry/internal/pod"
)

// CNI makes a span of every call of a CNI plugin: "cni bridge ADD".
func (t *Traces) CNI(next invoke.Exec) invoke.Exec { return &tracedPlugins{next, t} }

type tracedPlugins struct {
	invoke.Exec
	traces *Traces
}

func (p *tracedPlugins) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	name := "cni " + filepath.Base(path)
	for _, entry := range environ {
		if command, ok := strings.CutPrefix(entry, "CNI_COMMAND="); ok {
			name += " " + command
		}
	}
	ctx, end := p.traces.Step(ctx, name)
	out, err := p.Exec.ExecPlugin(ctx, path, stdin, environ)
	end(err)
	return out, err
}

// Layers makes a span of every layer that a pull fetches. The caller gives progress to the pull and
// calls end after it.
func (t *Traces) Layers(ctx context.Context, also func(pod.LayerProgress)) (progress func(pod.LayerProgress), end func()) {
	var mu sync.Mutex
	spans := make(map[string]trace.Span) // nil: ended; guarded by mu
	progress = func(l pod.LayerProgress) {
		mu.Lock()
		span, known := spans[l.Digest]
		if !known {
			_, span = t.tracer.Start(ctx, "layer", trace.WithAttributes(
				attribute.String("digest", l.Digest), attribute.Int64("bytes", l.Total)))
			spans[l.Digest] = span
		}
		if span != nil && l.Total > 0 && l.Done >= l.Total {
			span.End()
			spans[l.Digest] = nil
		}
		mu.Unlock()
		if also != nil {
			also(l)
		}
	}
	return progress, func() {
		mu.Lock()
		defer mu.Unlock()
		for _, span := range spans {
			if span != nil {
				span.End()
			}
		}
	}
}
