package cri_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/cri"
	"gantry/internal/event"
)

// listen subscribes and returns when the server has said that it listens, with the header it sent.
func listen(ctx context.Context, t *testing.T, client runtime.RuntimeServiceClient) (runtime.RuntimeService_GetContainerEventsClient, metadata.MD) {
	t.Helper()
	stream, err := client.GetContainerEvents(ctx, &runtime.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	header, err := stream.Header()
	if err != nil {
		t.Fatal(err)
	}
	return stream, header
}

func (m *memory) tell(kind event.Kind, id string) {
	m.events.Publish(func() event.Event {
		return event.Event{Kind: kind, ID: id, Sandbox: m.pods[0], Containers: m.containers[:2]}
	})
}

func TestGetContainerEvents(t *testing.T) {
	m := node()
	m.events = event.New(event.Options{})
	conn, _ := serve(t, m, cri.Interceptors{})
	client := runtime.NewRuntimeServiceClient(conn)
	a, _ := listen(t.Context(), t, client)
	b, _ := listen(t.Context(), t, client)
	for _, kind := range []event.Kind{event.Created, event.Started, event.Stopped, event.Deleted} {
		m.tell(kind, "c1")
	}
	for name, stream := range map[string]runtime.RuntimeService_GetContainerEventsClient{"the first": a, "the second": b} {
		last := int64(0)
		for want := range runtime.ContainerEventType(4) {
			ev, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if ev.GetContainerEventType() != want || ev.GetContainerId() != "c1" || ev.GetCreatedAt() <= last {
				t.Errorf("%s listener: %v, want %v after %d", name, ev, want, last)
			}
			if ev.GetPodSandboxStatus().GetMetadata().GetUid() != "u-web" || len(ev.GetContainersStatuses()) != 2 ||
				ev.GetContainersStatuses()[1].GetReason() != "OOMKilled" {
				t.Errorf("%s listener: the statuses are not whole: %v", name, ev)
			}
			last = ev.GetCreatedAt()
		}
	}
}

func TestGetContainerEventsReplays(t *testing.T) {
	m := node()
	m.events = event.New(event.Options{Keep: 2})
	conn, _ := serve(t, m, cri.Interceptors{})
	client := runtime.NewRuntimeServiceClient(conn)
	for _, id := range []string{"lost", "second", "third"} {
		m.tell(event.Created, id)
	}
	ctx := metadata.AppendToOutgoingContext(t.Context(), cri.ReplaySinceKey, time.Now().Add(-time.Hour).Format(time.RFC3339Nano))
	stream, header := listen(ctx, t, client)
	m.tell(event.Started, "now")
	var first time.Time
	for _, want := range []string{"second", "third", "now"} {
		ev, err := stream.Recv()
		if err != nil || ev.GetContainerId() != want {
			t.Fatalf("%v, %v, want %s", ev, err, want)
		}
		if first.IsZero() {
			first = time.Unix(0, ev.GetCreatedAt())
		}
	}
	complete, err := time.Parse(time.RFC3339Nano, strings.Join(header.Get(cri.CompleteSinceKey), ""))
	if err != nil || !complete.Before(first) || time.Since(complete) > time.Minute {
		t.Errorf("complete since %v, %v; the first event that is kept is of %v", complete, err, first)
	}
	if n := strings.Join(header.Get(cri.ReplayedKey), ""); n != "2" {
		t.Errorf("%s events are said to be replayed, want 2", n)
	}
	bad, err := client.GetContainerEvents(metadata.AppendToOutgoingContext(t.Context(), cri.ReplaySinceKey, "yesterday"), &runtime.GetEventsRequest{})
	if err == nil {
		_, err = bad.Recv()
	}
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), cri.ReplaySinceKey) {
		t.Errorf("a time that is none: %v", err)
	}
}

// A client that does not read is told, behind the last event that it did not miss.
func TestASlowClientIsCutOff(t *testing.T) {
	m := node()
	m.events = event.New(event.Options{Buffer: 8})
	m.pods[0].Spec.Annotations = map[string]string{"large": strings.Repeat("x", 64<<10)} // fills the stream's window soon
	_, socket := serve(t, m, cri.Interceptors{})
	// A window that grows with what arrives could take everything in time.
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithStaticStreamWindowSize(64<<10))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	slow, _ := listen(t.Context(), t, runtime.NewRuntimeServiceClient(conn))
	for i := range 200 {
		m.tell(event.Started, fmt.Sprint(i))
	}
	for next := 0; ; next++ {
		ev, err := slow.Recv()
		if err != nil {
			if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "list anew") || next == 0 || next == 200 {
				t.Errorf("after %d events: %v", next, err)
			}
			return
		}
		if ev.GetContainerId() != fmt.Sprint(next) {
			t.Fatalf("event %s where %d was due", ev.GetContainerId(), next)
		}
	}
}

func TestGetContainerEventsEndsWithTheClient(t *testing.T) {
	m := node()
	m.events = event.New(event.Options{})
	conn, _ := serve(t, m, cri.Interceptors{})
	ctx, cancel := context.WithCancel(t.Context())
	stream, _ := listen(ctx, t, runtime.NewRuntimeServiceClient(conn))
	cancel()
	if _, err := stream.Recv(); status.Code(err) != codes.Canceled {
		t.Errorf("%v", err)
	}
	other, _ := listen(t.Context(), t, runtime.NewRuntimeServiceClient(conn))
	m.events.Close()
	if _, err := other.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("when the server ends: %v", err)
	}
}
