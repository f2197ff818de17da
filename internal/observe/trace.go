package observe

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	otelcodes "go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// Traces sends spans to an OpenTelemetry collector. Its interceptors belong outermost; a caller's
// trace (the kubelet's) goes on in it.
type Traces struct {
	provider *sdktrace.TracerProvider
	tracer   trace.Tracer
	callers  propagation.TraceContext
}

// NewTraces returns nil where the environment names no collector. It is OpenTelemetry's own
// environment: OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME and the others.
func NewTraces(ctx context.Context, log *slog.Logger, version string) (*Traces, error) {
	if os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") == "" && os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") == "" ||
		strings.EqualFold(os.Getenv("OTEL_SDK_DISABLED"), "true") {
		return nil, nil
	}
	for _, name := range []string{"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"} {
		if p := os.Getenv(name); p != "" && p != "http/protobuf" {
			return nil, fmt.Errorf("%s=%s: traces are sent as http/protobuf only", name, p)
		}
	}
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return nil, fmt.Errorf("export traces: %w", err)
	}
	self, err := resource.New(ctx, resource.WithAttributes(
		attribute.String("service.name", "gantry"), attribute.String("service.version", version),
	), resource.WithFromEnv())
	if err != nil {
		return nil, fmt.Errorf("describe this process for traces: %w", err)
	}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Warn("traces are lost", "error", err) }))
	p := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(self))
	return &Traces{provider: p, tracer: p.Tracer("gantry")}, nil
}

// Close sends what is left.
func (t *Traces) Close(ctx context.Context) error { return t.provider.Shutdown(ctx) }

// Step begins a span of a part of what ctx's span does; the function that it returns ends it.
func (t *Traces) Step(ctx context.Context, name string) (inner context.Context, end func(error)) {
	inner, span := t.tracer.Start(ctx, name)
	return inner, func(err error) {
		if err != nil {
			span.SetStatus(otelcodes.Error, err.Error())
		}
		span.End()
	}
}

// Unary is a grpc.UnaryServerInterceptor.
func (t *Traces) Unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	ctx, span := t.begin(ctx, info.FullMethod)
	res, err := handler(ctx, req)
	finish(span, err)
	return res, err
}

// Stream is a grpc.StreamServerInterceptor.
func (t *Traces) Stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	ctx, span := t.begin(ss.Context(), info.FullMethod)
	err := handler(srv, tracedStream{ss, ctx})
	finish(span, err)
	return err
}

// tracedStream carries a span in its context.
type tracedStream struct {
	grpc.ServerStream
	ctx context.Context //nolint:containedctx // a stream has one
}

func (s tracedStream) Context() context.Context { return s.ctx }

// begin names spans and attributes as OpenTelemetry's conventions for RPCs want them.
func (t *Traces) begin(ctx context.Context, method string) (context.Context, trace.Span) {
	if in, ok := metadata.FromIncomingContext(ctx); ok {
		ctx = t.callers.Extract(ctx, carrier(in))
	}
	method = strings.TrimPrefix(method, "/")
	service, name, _ := strings.Cut(method, "/")
	return t.tracer.Start(ctx, method, trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(
		attribute.String("rpc.system", "grpc"), attribute.String("rpc.service", service), attribute.String("rpc.method", name),
	))
}

func finish(span trace.Span, err error) {
	s := status.Convert(err)
	span.SetAttributes(attribute.Int64("rpc.grpc.status_code", int64(s.Code())))
	if err != nil {
		span.SetStatus(otelcodes.Error, s.Message())
	}
	span.End()
}

// carrier is gRPC metadata as a propagation.TextMapCarrier.
type carrier metadata.MD

func (c carrier) Set(key, value string) { metadata.MD(c).Set(key, value) }

func (c carrier) Get(key string) string {
	if v := metadata.MD(c).Get(key); len(v) > 0 {
		return v[0]
	}
	return ""
}

func (c carrier) Keys() []string {
	var keys []string
	for k := range c {
		keys = append(keys, k)
	}
	return keys
}
