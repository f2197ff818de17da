// Package cri serves the Kubernetes Container Runtime Interface over gRPC.
//
// An RPC is a short method: it converts the protobuf request into the nouns of package pod, calls
// one method of a backend, and converts the answer. Conversion is pure and refuses, by naming the
// field, what it cannot express; nothing that a client asked for is dropped silently. Errors keep
// their containerd/errdefs class until one interceptor turns it into a gRPC code.
//
// The same handlers answer under runtime.v1 and under runtime.v1alpha2, whose wire format is equal.
package cri

import (
	"log/slog"
	"strings"

	"google.golang.org/grpc"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/pod"
)

// MaxMessageSize bounds a message in either direction, in bytes: what the kubelet's client accepts.
const MaxMessageSize = 16 << 20

// legacy is the package name of the CRI before v1.
const legacy = "runtime.v1alpha2"

// Options are what the services stand on. All backends are required.
type Options struct {
	Pods        Pods
	Containers  Containers
	Checkpoints Checkpoints
	Resizer     Resizer
	Views       ContainerViews
	Statistics  Statistics
	Events      Events
	Streams     Streams
	Images      Images
	Node        Node
	// URLs hands out the addresses at which exec, attach and port-forward are served.
	URLs    StreamURLs
	Log     *slog.Logger // nil: slog.Default
	Version string       // gantry's own version, shown as runtime_version
}

// Service implements RuntimeService and ImageService. The embedded types make a new RPC of the
// CRI an error of the compiler instead of a surprise at run time.
type Service struct {
	runtime.UnsafeRuntimeServiceServer
	runtime.UnsafeImageServiceServer

	pods        Pods
	containers  Containers
	checkpoints Checkpoints
	resizer     Resizer
	views       ContainerViews
	statistics  Statistics
	events      Events
	streams     Streams
	images      Images
	node        Node
	urls        StreamURLs
	log         *slog.Logger
	version     string

	containerLists answers[pod.Container, *runtime.ListContainersResponse]
	podLists       answers[pod.Sandbox, *runtime.ListPodSandboxResponse]
}

var (
	_ runtime.RuntimeServiceServer = (*Service)(nil)
	_ runtime.ImageServiceServer   = (*Service)(nil)
)

// New returns the services over o's backends.
func New(o Options) *Service {
	s := &Service{
		pods: o.Pods, containers: o.Containers, checkpoints: o.Checkpoints, resizer: o.Resizer, views: o.Views,
		statistics: o.Statistics, events: o.Events, streams: o.Streams,
		images: o.Images, node: o.Node, urls: o.URLs, log: o.Log, version: o.Version,
	}
	if s.log == nil {
		s.log = slog.Default()
	}
	return s
}

// Interceptors see every RPC, with its error already turned into a gRPC status.
type Interceptors struct {
	Unary  []grpc.UnaryServerInterceptor
	Stream []grpc.StreamServerInterceptor
}

// streamWorkers are goroutines that serve one RPC after the other: a new goroutine has to grow its stack
// for each. More RPCs at once, and those that last, get goroutines of their own.
const streamWorkers = 8

// NewServer returns a gRPC server with s registered, the CRI's message sizes and the translation
// of errors innermost.
func NewServer(s *Service, in Interceptors) *grpc.Server {
	unary := append(append([]grpc.UnaryServerInterceptor{}, in.Unary...), unaryErrors)
	stream := append(append([]grpc.StreamServerInterceptor{}, in.Stream...), streamErrors)
	g := grpc.NewServer(
		grpc.MaxRecvMsgSize(MaxMessageSize),
		grpc.MaxSendMsgSize(MaxMessageSize),
		grpc.ForceServerCodecV2(newCodec(s)),
		grpc.NumStreamWorkers(streamWorkers),
		grpc.ChainUnaryInterceptor(unary...),
		grpc.ChainStreamInterceptor(stream...),
	)
	Register(g, s)
	return g
}

// Register puts s under the names of the CRI v1 and of v1alpha2.
func Register(r grpc.ServiceRegistrar, s *Service) {
	for _, d := range []grpc.ServiceDesc{runtime.RuntimeService_ServiceDesc, runtime.ImageService_ServiceDesc} {
		r.RegisterService(&d, s)
		old := d
		old.ServiceName = legacy + strings.TrimPrefix(d.ServiceName, "runtime.v1")
		r.RegisterService(&old, s)
	}
}
