package nri

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// Plugin is a plugin that is, or was, connected.
type Plugin struct {
	Name  string    `json:"name"` // "NN-name"; plugins are called in this order
	Since time.Time `json:"since"`
	Calls uint64    `json:"calls"`
	// Failures are calls that it did not answer, or refused.
	Failures uint64 `json:"failures"`
	// Lost is when the connection ended, zero while it is there; Reason is why, as far as that is known.
	Lost   time.Time `json:"lost,omitzero"`
	Reason string    `json:"reason,omitempty"`
}

// mostLost is how many lost plugins are remembered.
const mostLost = 32

// roster knows which plugins are connected. The library does not tell, but it says when it has called a
// plugin, and lets every connection be watched: a plugin is whoever was synchronized on a connection.
type roster struct {
	log    *slog.Logger
	onCall func(Call)

	mu        sync.Mutex
	connected map[*ttrpc.Client]*Plugin // guarded by mu
	lost      []*Plugin                 // the oldest first; guarded by mu
	joining   *ttrpc.Client             // was synchronized last; guarded by mu
	failed    failure                   // the last; guarded by mu
	took      map[call]time.Duration    // of calls that were not recorded yet; guarded by mu
	closed    bool                      // guarded by mu
}

type failure struct {
	plugin string
	err    error
}

// call is a call under way: a plugin has one at a time.
type call struct{ plugin, event string }

func newRoster(log *slog.Logger, onCall func(Call)) *roster {
	if onCall == nil {
		onCall = func(Call) {}
	}
	return &roster{log: log, onCall: onCall, connected: make(map[*ttrpc.Client]*Plugin), took: make(map[call]time.Duration)}
}

// watch is an option of every connection to a plugin. Plugins are synchronized one after the other, so
// the name that the library then tells is that of this connection.
func (r *roster) watch(c *ttrpc.Client) {
	intercept := func(ctx context.Context, req *ttrpc.Request, resp *ttrpc.Response, info *ttrpc.UnaryClientInfo, call ttrpc.Invoker) error {
		if strings.HasSuffix(info.FullMethod, "/Synchronize") {
			r.mu.Lock()
			r.joining = c
			r.mu.Unlock()
		}
		if err := call(ctx, req, resp); err != nil {
			return err
		}
		return refuseDropped(info.FullMethod, resp.GetPayload())
	}
	ttrpc.WithUnaryClientInterceptor(intercept)(c)
	go func() {
		_ = c.UserOnCloseWait(context.Background()) // ends with the connection
		r.gone(c)
	}()
}

// updating is an answer that may want other containers updated.
type updating interface {
	proto.Message
	GetUpdate() []*api.ContainerUpdate
}

// refuseDropped refuses what a plugin wants and the library drops when it merges what plugins want: of
// updates, limits of processes and rules for devices.
func refuseDropped(method string, payload []byte) error {
	var answer updating
	switch method[strings.LastIndexByte(method, '/')+1:] {
	case "CreateContainer":
		answer = &api.CreateContainerResponse{}
	case "UpdateContainer":
		answer = &api.UpdateContainerResponse{}
	case "StopContainer":
		answer = &api.StopContainerResponse{}
	default:
		return nil
	}
	if err := proto.Unmarshal(payload, answer); err != nil {
		return nil //nolint:nilerr // the library reads it too, and says so
	}
	for _, u := range answer.GetUpdate() {
		field := ""
		switch r := u.GetLinux().GetResources(); {
		case r.GetPids() != nil:
			field = "pids"
		case len(r.GetDevices()) > 0:
			field = "devices"
		default:
			continue
		}
		return status.Errorf(codes.Unimplemented, "update of container %s: linux.resources.%s cannot be updated through NRI", u.GetContainerId(), field)
	}
	return nil
}

// RecordPluginInvocation is called after every call of a plugin.
func (r *roster) RecordPluginInvocation(name, event string, err error) {
	r.onCall(Call{Plugin: name, Event: event, Took: r.note(name, event, err), Err: err})
}

// note returns how long the call took.
func (r *roster) note(name, event string, err error) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	took := r.took[call{name, event}]
	delete(r.took, call{name, event})
	if event == "Synchronize" && err == nil && r.joining != nil && r.connected[r.joining] == nil {
		r.connected[r.joining] = &Plugin{Name: name, Since: time.Now()}
		r.joining = nil
		r.log.Info("an NRI plugin has joined", "plugin", name)
	}
	for _, p := range r.connected {
		if p.Name != name {
			continue
		}
		p.Calls++
		p.Reason = ""
		if err != nil {
			p.Failures++
			p.Reason = fmt.Sprintf("%s: %s", event, said(err))
		}
	}
	if err != nil {
		r.failed = failure{name, err}
	}
	return took
}

// RecordPluginLatency is called after every call of a plugin, before RecordPluginInvocation.
func (r *roster) RecordPluginLatency(name, event string, took time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.took[call{name, event}] = took
}

// RecordPluginAdjustments is told what a plugin wants. The library passes everything on but evictions.
func (r *roster) RecordPluginAdjustments(name, event string, _ *api.ContainerAdjustment, _, evictions int) {
	if evictions > 0 {
		r.log.Warn("an NRI plugin wants containers evicted, which NRI does not pass on", "plugin", name, "event", event, "containers", evictions)
	}
}

// UpdatePluginCount tells how many plugins the library has.
func (r *roster) UpdatePluginCount(int) {}

// gone notes the end of a connection.
func (r *roster) gone(c *ttrpc.Client) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.joining == c { // it was synchronized, and left before that was noted
		r.joining = nil
	}
	p := r.connected[c]
	delete(r.connected, c)
	if p == nil || r.closed {
		return
	}
	p.Lost = time.Now()
	if p.Reason == "" {
		p.Reason = "it closed the connection"
	}
	r.lost = append(r.lost, p)
	if len(r.lost) > mostLost {
		r.lost = slices.Delete(r.lost, 0, 1)
	}
	r.log.Warn("an NRI plugin is gone", "plugin", p.Name, "reason", p.Reason)
}

// close ends every connection.
func (r *roster) close() {
	r.mu.Lock()
	r.closed = true
	all := slices.Collect(maps.Keys(r.connected))
	r.mu.Unlock()
	for _, c := range all {
		_ = c.Close() // it is an error only for calls under way
	}
}

func (r *roster) any() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.connected) > 0
}

// list returns the connected plugins in the order of their calls, then those that are gone.
func (r *roster) list() []Plugin {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]Plugin, 0, len(r.connected)+len(r.lost))
	for _, p := range r.connected {
		all = append(all, *p)
	}
	slices.SortFunc(all, func(a, b Plugin) int { return cmp.Compare(a.Name, b.Name) })
	for _, p := range r.lost {
		all = append(all, *p)
	}
	return all
}

// blame says which plugin's error err is, "" when it is the library's own.
func (r *roster) blame(err error) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.failed.err != nil && errors.Is(err, r.failed.err) {
		return r.failed.plugin
	}
	return ""
}

// said is the text of an error without the protocol's wrapping.
func said(err error) string {
	if st, ok := status.FromError(err); ok {
		return st.Message()
	}
	return err.Error()
}
