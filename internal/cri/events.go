package cri

import (
	"fmt"
	"strconv"
	"time"

	"google.golang.org/grpc/metadata"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/event"
)

// ReplaySinceKey is the gRPC metadata with which a client of GetContainerEvents asks for earlier
// events too: a time in RFC 3339, such as 2006-01-02T15:04:05.999999999Z. Headers answer at once:
// CompleteSinceKey from when on no event is missing, for the server keeps a bounded number, and
// ReplayedKey how many earlier events come first.
const (
	ReplaySinceKey   = "gantry-replay-since"
	CompleteSinceKey = "gantry-complete-since"
	ReplayedKey      = "gantry-replayed"
)

// GetContainerEvents sends what happens to containers and sandboxes until the client leaves. A client
// that reads too slowly gets ResourceExhausted behind the last event that it did not miss.
func (s *Service) GetContainerEvents(_ *runtime.GetEventsRequest, stream runtime.RuntimeService_GetContainerEventsServer) error {
	ctx := stream.Context()
	md, _ := metadata.FromIncomingContext(ctx)
	since, err := replaySince(md)
	if err != nil {
		return err
	}
	sub := s.events.Events(since)
	defer sub.Close()
	header := metadata.Pairs(
		CompleteSinceKey, sub.Complete.UTC().Format(time.RFC3339Nano), ReplayedKey, strconv.Itoa(len(sub.Replay)),
	)
	if err := stream.SendHeader(header); err != nil {
		return fmt.Errorf("send header: %w", err)
	}
	for i := range sub.Replay {
		if err := stream.Send(fromEvent(&sub.Replay[i])); err != nil {
			return fmt.Errorf("send event: %w", err)
		}
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case ev, ok := <-sub.Events():
			if !ok {
				return sub.Err()
			}
			if err := stream.Send(fromEvent(&ev)); err != nil {
				return fmt.Errorf("send event: %w", err)
			}
		}
	}
}

// replaySince is zero when nothing is asked for.
func replaySince(md metadata.MD) (time.Time, error) {
	values := md.Get(ReplaySinceKey)
	if len(values) == 0 {
		return time.Time{}, nil
	}
	since, err := time.Parse(time.RFC3339Nano, values[len(values)-1])
	if err != nil {
		return time.Time{}, invalid(ReplaySinceKey, "%q is not a time in RFC 3339", values[len(values)-1])
	}
	return since, nil
}

var eventTypes = map[event.Kind]runtime.ContainerEventType{
	event.Created: runtime.ContainerEventType_CONTAINER_CREATED_EVENT,
	event.Started: runtime.ContainerEventType_CONTAINER_STARTED_EVENT,
	event.Stopped: runtime.ContainerEventType_CONTAINER_STOPPED_EVENT,
	event.Deleted: runtime.ContainerEventType_CONTAINER_DELETED_EVENT,
}

func fromEvent(ev *event.Event) *runtime.ContainerEventResponse {
	out := &runtime.ContainerEventResponse{
		ContainerId: ev.ID, ContainerEventType: eventTypes[ev.Kind], CreatedAt: nanos(ev.At),
		PodSandboxStatus: fromSandboxStatus(ev.Sandbox),
	}
	for _, c := range ev.Containers {
		out.ContainersStatuses = append(out.ContainersStatuses, fromContainerStatus(c))
	}
	return out
}
