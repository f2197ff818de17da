package observe_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"gantry/internal/observe"
)

// collect is a collector; the function returns the spans that came, by name.
func collect(t *testing.T) (url string, spans func() map[string]*tracepb.Span) {
	t.Helper()
	var mu sync.Mutex
	got := map[string]*tracepb.Span{}
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var req collector.ExportTraceServiceRequest
		body, err := io.ReadAll(r.Body)
		if err == nil {
			err = proto.Unmarshal(body, &req)
		}
		if err != nil || r.URL.Path != "/v1/traces" {
			t.Errorf("%s: %v", r.URL, err)
		}
		mu.Lock()
		defer mu.Unlock()
		for _, of := range req.GetResourceSpans() {
			for _, in := range of.GetScopeSpans() {
				for _, one := range in.GetSpans() {
					got[one.GetName()] = one
				}
			}
		}
	}))
	t.Cleanup(s.Close)
	return s.URL, func() map[string]*tracepb.Span {
		mu.Lock()
		defer mu.Unlock()
		return got
	}
}

func TestTracesReachACollector(t *testing.T) {
	url, spans := collect(t)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
	traces, err := observe.NewTraces(t.Context(), slog.New(slog.DiscardHandler), "1.2.3")
	if err != nil {
		t.Fatal(err)
	}
	const caller = "00-0102030405060708090a0b0c0d0e0f10-0102030405060708-01"
	ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("traceparent", caller))
	info := &grpc.UnaryServerInfo{FullMethod: "/runtime.v1.RuntimeService/RunPodSandbox"}
	_, err = traces.Unary(ctx, nil, info, func(ctx context.Context, _ any) (any, error) {
		_, end := traces.Step(ctx, "network attach")
		end(errors.New("no plugin"))
		return nil, errors.New("no plugin")
	})
	if err == nil {
		t.Error("the error is lost")
	}
	if err = traces.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	rpc, step := spans()["runtime.v1.RuntimeService/RunPodSandbox"], spans()["network attach"]
	if rpc == nil || step == nil {
		t.Fatalf("%v", spans())
	}
	if string(rpc.GetParentSpanId()) != "\x01\x02\x03\x04\x05\x06\x07\x08" || rpc.GetTraceId()[0] != 1 {
		t.Errorf("the caller's trace does not go on: %v", rpc)
	}
	if string(step.GetParentSpanId()) != string(rpc.GetSpanId()) || step.GetStatus().GetMessage() != "no plugin" {
		t.Errorf("%v", step)
	}
}

func TestTracesAreOffUnlessACollectorIsNamed(t *testing.T) {
	for _, c := range []struct {
		rule    string
		env     map[string]string
		refused bool
	}{
		{"nothing is named", nil, false},
		{"switched off", map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"}, false},
		{"a protocol that is not spoken", map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, true},
	} {
		t.Run(c.rule, func(t *testing.T) {
			for k, v := range c.env {
				t.Setenv(k, v)
			}
			traces, err := observe.NewTraces(t.Context(), slog.New(slog.DiscardHandler), "")
			if traces != nil || (err != nil) != c.refused {
				t.Errorf("%v, %v", traces, err)
			}
		})
	}
}
