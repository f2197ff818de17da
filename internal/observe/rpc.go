package observe

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// RPCs observes a gRPC server. Its interceptors belong outermost, above the one that gives errors
// their codes.
type RPCs struct {
	log      *slog.Logger
	duration *prometheus.HistogramVec
	running  *prometheus.GaugeVec
	panics   *prometheus.CounterVec
}

// NewRPCs registers the metrics of a server and returns its observer.
func NewRPCs(log *slog.Logger, reg prometheus.Registerer) (*RPCs, error) {
	r := &RPCs{
		log: log,
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "gantry_rpc_duration_seconds",
			Help: "How long RPCs took, by the method that was called and the gRPC code of the answer.",
			// From a list out of memory to the pull of a large image.
			Buckets: []float64{.0001, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 120, 600},
		}, []string{"method", "code"}),
		running: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "gantry_rpc_running", Help: "RPCs that are being served.",
		}, []string{"method"}),
		panics: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "gantry_rpc_panics_total", Help: "RPCs that ended in a panic, which is a bug of gantry.",
		}, []string{"method"}),
	}
	for _, c := range []prometheus.Collector{r.duration, r.running, r.panics} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics of RPCs: %w", err)
		}
	}
	return r, nil
}

// Unary is a grpc.UnaryServerInterceptor.
func (r *RPCs) Unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (res any, err error) {
	end := r.begin(ctx, info.FullMethod)
	defer func() {
		if p := recover(); p != nil {
			res, err = nil, r.panicked(ctx, end.method, p)
		}
		end.with(req, res, err)
	}()
	return handler(ctx, req)
}

// Stream is a grpc.StreamServerInterceptor.
func (r *RPCs) Stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	w := &firstMessage{ServerStream: ss}
	end := r.begin(ss.Context(), info.FullMethod)
	defer func() {
		if p := recover(); p != nil {
			err = r.panicked(ss.Context(), end.method, p)
		}
		end.with(w.req, nil, err)
	}()
	return handler(srv, w)
}

// firstMessage keeps the request of a stream for the log.
type firstMessage struct {
	grpc.ServerStream
	req any
}

func (f *firstMessage) RecvMsg(m any) error {
	err := f.ServerStream.RecvMsg(m)
	if err == nil && f.req == nil {
		f.req = m
	}
	return err
}

// panicked turns a panic into an answer, so that one bad request does not end the server.
func (r *RPCs) panicked(ctx context.Context, method string, p any) error {
	r.panics.WithLabelValues(method).Inc()
	r.log.ErrorContext(ctx, "panic", "method", method, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
	return status.Errorf(codes.Internal, "gantry panicked in %s: %v", method, p)
}

// call is an RPC that is being served.
type call struct {
	rpcs   *RPCs
	ctx    context.Context //nolint:containedctx // a call ends where it began
	method string          // as the client called it
	began  time.Time
}

// begin prefers the name that the client called: the same handler serves several.
func (r *RPCs) begin(ctx context.Context, method string) *call {
	if m, ok := grpc.Method(ctx); ok {
		method = m
	}
	r.running.WithLabelValues(method).Inc()
	return &call{rpcs: r, ctx: ctx, method: method, began: time.Now()}
}

func (c *call) with(req, res any, err error) {
	took := time.Since(c.began)
	code := status.Code(err)
	c.rpcs.running.WithLabelValues(c.method).Dec()
	c.rpcs.duration.WithLabelValues(c.method, code.String()).Observe(took.Seconds())
	level := levelOf(c.method, code)
	if !c.rpcs.log.Enabled(c.ctx, level) {
		return
	}
	attrs := []slog.Attr{slog.String("method", strings.TrimPrefix(c.method, "/"))}
	attrs = append(attrs, subjects(req, res)...)
	attrs = append(attrs, slog.Duration("duration", took), slog.String("code", code.String()))
	if err != nil {
		attrs = append(attrs, slog.String("error", status.Convert(err).Message()))
	}
	c.rpcs.log.LogAttrs(c.ctx, level, "rpc", attrs...)
}

// levelOf keeps what an idle kubelet asks all the time out of the log, and shows every failure but
// those that belong to asking: what is not there, and a caller who left.
func levelOf(method string, code codes.Code) slog.Level {
	asking := isQuestion(method[strings.LastIndexByte(method, '/')+1:])
	switch code {
	case codes.OK:
		if asking {
			return slog.LevelDebug
		}
		return slog.LevelInfo
	case codes.NotFound, codes.Canceled:
		if asking {
			return slog.LevelDebug
		}
		return slog.LevelWarn
	case codes.Internal, codes.Unknown, codes.DataLoss:
		return slog.LevelError
	}
	return slog.LevelWarn
}

// isQuestion says whether a method only asks.
func isQuestion(name string) bool {
	switch name {
	case "Version", "RuntimeConfig", "ImageFsInfo":
		return true
	}
	return strings.HasPrefix(name, "List") || strings.HasPrefix(name, "Stream") ||
		strings.HasSuffix(name, "Status") || strings.HasSuffix(name, "Stats")
}
