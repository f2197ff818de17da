package cli

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protojson"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/cmd/gantry/internal/client"
	"gantry/internal/cri"
)

func (a *app) eventsCommand() *cobra.Command {
	var (
		f      format
		since  string
		follow bool
	)
	cmd := &cobra.Command{
		Use: "events [POD|CONTAINER...]", Short: "Print what happens to pods and containers",
		Long: "Print what happens to pods and containers, as it happens. Arguments choose by a pod's name, NAMESPACE/NAME,\n" +
			"NAMESPACE/NAME/CONTAINER or the beginning of an id. JSON is one message of the CRI a line.",
		RunE: func(cmd *cobra.Command, args []string) error {
			from, err := parseSince(since, time.Now())
			if err != nil {
				return &usageError{cmd.CommandPath(), err}
			}
			p := &eventPrinter{out: a.out, json: f.name == "json", quiet: f.quiet, only: args, names: map[string]string{}}
			return a.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				return a.events(ctx, c, from, follow, p)
			})
		},
	}
	f.flags(cmd)
	cmd.Flags().StringVar(&since, "since", "", "print kept events since then too: a `TIME` in RFC 3339, or how long ago, such as 10m")
	cmd.Flags().BoolVar(&follow, "follow", true, "wait for more; false with --since prints what was and ends")
	return cmd
}

// parseSince returns the zero time for "".
func parseSince(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if ago, err := time.ParseDuration(text); err == nil {
		return now.Add(-ago), nil
	}
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return time.Time{}, fmt.Errorf("--since: %q is neither a time in RFC 3339 nor a duration such as 10m", text)
	}
	return at, nil
}

func (a *app) events(ctx context.Context, c *client.Client, since time.Time, follow bool, p *eventPrinter) error {
	if !since.IsZero() {
		ctx = metadata.AppendToOutgoingContext(ctx, cri.ReplaySinceKey, since.UTC().Format(time.RFC3339Nano))
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events := make(chan *v1.ContainerEventResponse)
	header := make(chan metadata.MD, 1)
	ended := make(chan error, 1)
	go func() {
		ended <- c.Runtime.GetContainerEvents(ctx, events, func(s v1.RuntimeService_GetContainerEventsClient) {
			md, _ := s.Header() // its error is that of the first event
			header <- md
		})
	}()
	var md metadata.MD
	select {
	case md = <-header:
	case err := <-ended:
		return fmt.Errorf("listen to events: %w", err)
	}
	a.warnOfMissing(md, since)
	left, _ := strconv.Atoi(strings.Join(md.Get(cri.ReplayedKey), ""))
	for ; follow || left > 0; left-- {
		select {
		case ev := <-events:
			if err := p.print(ev); err != nil {
				return err
			}
		case err := <-ended:
			if ctx.Err() != nil { // an interrupt is how this ends
				return nil
			}
			return fmt.Errorf("listen to events: %w", err)
		}
	}
	return nil
}

// warnOfMissing says when the server does not keep everything that was asked for.
func (a *app) warnOfMissing(md metadata.MD, since time.Time) {
	complete, err := time.Parse(time.RFC3339Nano, strings.Join(md.Get(cri.CompleteSinceKey), ""))
	if err == nil && !since.IsZero() && complete.After(since) {
		fmt.Fprintf(a.err, "gantry: events up to %s are not kept\n", complete.Local().Format(time.RFC3339))
	}
}

// eventPrinter prints one line an event.
type eventPrinter struct {
	out   io.Writer
	json  bool
	quiet bool
	only  []string
	names map[string]string // of containers, by id: a deleted one has no status any more
}

func (p *eventPrinter) print(ev *v1.ContainerEventResponse) error {
	md := ev.PodSandboxStatus.GetMetadata()
	podName := md.GetNamespace() + "/" + md.GetName()
	name, detail := p.container(ev)
	if !p.wanted(ev, podName, name) {
		return nil
	}
	kind := strings.ToLower(strings.TrimSuffix(strings.TrimPrefix(ev.ContainerEventType.String(), "CONTAINER_"), "_EVENT"))
	switch {
	case p.quiet:
		fmt.Fprintln(p.out, ev.ContainerId)
	case p.json:
		data, err := protojson.Marshal(ev)
		if err != nil {
			return fmt.Errorf("write JSON: %w", err)
		}
		return printLine(p.out, data)
	default:
		at := time.Unix(0, ev.CreatedAt).Format("2006-01-02T15:04:05.000000Z07:00")
		line := fmt.Sprintf("%s  %-7s  %-13s  %s  %s  %s", at, kind, client.Short(ev.ContainerId), podName, name, detail)
		fmt.Fprintln(p.out, strings.TrimRight(line, " "))
	}
	return nil
}

// container is the container's name, "-" for the sandbox, and how it ended.
func (p *eventPrinter) container(ev *v1.ContainerEventResponse) (name, detail string) {
	if ev.ContainerId == ev.PodSandboxStatus.GetId() {
		return "-", ""
	}
	for _, c := range ev.ContainersStatuses {
		p.names[c.Id] = c.Metadata.GetName()
		if c.Id == ev.ContainerId && ev.ContainerEventType == v1.ContainerEventType_CONTAINER_STOPPED_EVENT {
			detail = fmt.Sprintf("exit %d %s", c.ExitCode, c.Reason)
		}
	}
	name = p.names[ev.ContainerId]
	if ev.ContainerEventType == v1.ContainerEventType_CONTAINER_DELETED_EVENT {
		delete(p.names, ev.ContainerId)
	}
	if name == "" {
		name = "?"
	}
	return name, detail
}

// wanted says whether an argument names the event's pod or container; none name everything.
func (p *eventPrinter) wanted(ev *v1.ContainerEventResponse, podName, container string) bool {
	for _, arg := range p.only {
		if arg == podName || arg == ev.PodSandboxStatus.GetMetadata().GetName() || arg == podName+"/"+container ||
			strings.HasPrefix(ev.ContainerId, arg) || strings.HasPrefix(ev.PodSandboxStatus.GetId(), arg) {
			return true
		}
	}
	return len(p.only) == 0
}
