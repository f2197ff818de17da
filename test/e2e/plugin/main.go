// Command plugin is an NRI plugin for tests: it does what its configuration, or the file that its first
// argument names, says, and writes what it is told into a file.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
)

// orders are what a test wants of the plugin.
type orders struct {
	Name   string // of a plugin that connects by itself: "NN-name"
	Socket string
	Log    string // a line of JSON for everything it is told is appended
	// Hang, Die and Deny name the event at which it does that.
	Hang, Die, Deny string
	Policy          *api.FailurePolicy
	Adjust          *api.ContainerAdjustment
	// Update is wanted of every other container that it knows, Resize of one that is being updated.
	Update, Resize *api.LinuxResources
	// Ask is wanted, at that event and by a call of its own, of the containers that it knows.
	Ask       string
	Unasked   *api.LinuxResources
	Validates bool // refuses adjustments that set a variable named FORBIDDEN
}

// line is what the plugin writes.
type line struct {
	Event      string
	Pod        *api.PodSandbox   `json:",omitempty"`
	Container  *api.Container    `json:",omitempty"`
	Pods       []*api.PodSandbox `json:",omitempty"`
	Containers []*api.Container  `json:",omitempty"`
	Failed     []string          `json:",omitempty"`
}

type plugin struct {
	mu     sync.Mutex
	orders orders
	known  map[string]bool // containers; guarded by mu
	stub   stub.Stub
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	p := &plugin{known: make(map[string]bool)}
	var opts []stub.Option
	if len(os.Args) > 1 {
		data, err := os.ReadFile(os.Args[1])
		if err != nil {
			return err
		}
		if err = json.Unmarshal(data, &p.orders); err != nil {
			return err
		}
		opts = append(opts, stub.WithPluginIdx(p.orders.Name[:2]), stub.WithPluginName(p.orders.Name[3:]), stub.WithSocketPath(p.orders.Socket))
		if p.orders.Policy != nil {
			opts = append(opts, stub.WithFailurePolicy(p.orders.Policy))
		}
	}
	var err error
	if p.orders.Validates {
		p.stub, err = stub.New(&validator{p}, opts...)
	} else {
		p.stub, err = stub.New(p, opts...)
	}
	if err != nil {
		return err
	}
	return p.stub.Run(context.Background())
}

// Configure takes the orders of a plugin that the server has started.
func (p *plugin) Configure(_ context.Context, config, _, _ string) (stub.EventMask, error) {
	if config == "" {
		return 0, nil
	}
	return 0, json.Unmarshal([]byte(config), &p.orders)
}

// at does what is ordered at an event.
func (p *plugin) at(ctx context.Context, l line) error {
	p.mu.Lock()
	o := p.orders
	var others []string
	for id := range p.known {
		if l.Container == nil || id != l.Container.Id {
			others = append(others, id)
		}
	}
	if l.Container != nil {
		p.known[l.Container.Id] = l.Event != "RemoveContainer"
	}
	p.mu.Unlock()
	if o.Ask == l.Event && o.Unasked != nil {
		failed, err := p.stub.UpdateContainers(updates(others, o.Unasked))
		if err != nil {
			return err
		}
		for _, u := range failed {
			l.Failed = append(l.Failed, u.ContainerId)
		}
	}
	if err := write(o.Log, l); err != nil {
		return err
	}
	switch l.Event {
	case o.Hang:
		<-ctx.Done()
		select {} // whatever the caller does
	case o.Die:
		os.Exit(3)
	case o.Deny:
		return errors.New("the plugin says no")
	}
	return nil
}

func updates(ids []string, r *api.LinuxResources) []*api.ContainerUpdate {
	var all []*api.ContainerUpdate
	for _, id := range ids {
		all = append(all, &api.ContainerUpdate{ContainerId: id, Linux: &api.LinuxContainerUpdate{Resources: r}})
	}
	return all
}

func write(path string, l line) error {
	if path == "" {
		return nil
	}
	data, err := json.Marshal(l)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(data, '\n'))
	return errors.Join(err, f.Close())
}

func (p *plugin) Synchronize(ctx context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	p.mu.Lock()
	var ids []string
	for _, c := range containers {
		p.known[c.Id] = true
		ids = append(ids, c.Id)
	}
	p.mu.Unlock()
	err := p.at(ctx, line{Event: "Synchronize", Pods: pods, Containers: containers})
	if p.orders.Update == nil {
		return nil, err
	}
	return updates(ids, p.orders.Update), err
}

func (p *plugin) RunPodSandbox(ctx context.Context, s *api.PodSandbox) error {
	return p.at(ctx, line{Event: "RunPodSandbox", Pod: s})
}

func (p *plugin) UpdatePodSandbox(ctx context.Context, s *api.PodSandbox, _, _ *api.LinuxResources) error {
	return p.at(ctx, line{Event: "UpdatePodSandbox", Pod: s})
}

func (p *plugin) PostUpdatePodSandbox(ctx context.Context, s *api.PodSandbox) error {
	return p.at(ctx, line{Event: "PostUpdatePodSandbox", Pod: s})
}

func (p *plugin) StopPodSandbox(ctx context.Context, s *api.PodSandbox) error {
	return p.at(ctx, line{Event: "StopPodSandbox", Pod: s})
}

func (p *plugin) RemovePodSandbox(ctx context.Context, s *api.PodSandbox) error {
	return p.at(ctx, line{Event: "RemovePodSandbox", Pod: s})
}

func (p *plugin) CreateContainer(ctx context.Context, s *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	p.mu.Lock()
	var others []string
	for id := range p.known {
		others = append(others, id)
	}
	p.mu.Unlock()
	err := p.at(ctx, line{Event: "CreateContainer", Pod: s, Container: c})
	var wanted []*api.ContainerUpdate
	if p.orders.Update != nil {
		wanted = updates(others, p.orders.Update)
	}
	return p.orders.Adjust, wanted, err
}

func (p *plugin) PostCreateContainer(ctx context.Context, s *api.PodSandbox, c *api.Container) error {
	return p.at(ctx, line{Event: "PostCreateContainer", Pod: s, Container: c})
}

func (p *plugin) StartContainer(ctx context.Context, s *api.PodSandbox, c *api.Container) error {
	return p.at(ctx, line{Event: "StartContainer", Pod: s, Container: c})
}

func (p *plugin) PostStartContainer(ctx context.Context, s *api.PodSandbox, c *api.Container) error {
	return p.at(ctx, line{Event: "PostStartContainer", Pod: s, Container: c})
}

func (p *plugin) UpdateContainer(ctx context.Context, s *api.PodSandbox, c *api.Container, _ *api.LinuxResources) ([]*api.ContainerUpdate, error) {
	err := p.at(ctx, line{Event: "UpdateContainer", Pod: s, Container: c})
	if p.orders.Resize == nil {
		return nil, err
	}
	return updates([]string{c.Id}, p.orders.Resize), err
}

func (p *plugin) PostUpdateContainer(ctx context.Context, s *api.PodSandbox, c *api.Container) error {
	return p.at(ctx, line{Event: "PostUpdateContainer", Pod: s, Container: c})
}

func (p *plugin) StopContainer(ctx context.Context, s *api.PodSandbox, c *api.Container) ([]*api.ContainerUpdate, error) {
	return nil, p.at(ctx, line{Event: "StopContainer", Pod: s, Container: c})
}

func (p *plugin) RemoveContainer(ctx context.Context, s *api.PodSandbox, c *api.Container) error {
	return p.at(ctx, line{Event: "RemoveContainer", Pod: s, Container: c})
}

// validator is a plugin that also judges what the others want.
type validator struct{ *plugin }

func (v *validator) ValidateContainerAdjustment(ctx context.Context, req *api.ValidateContainerAdjustmentRequest) error {
	for _, e := range req.GetAdjust().GetEnv() {
		if e.GetKey() == "FORBIDDEN" {
			return errors.New("nobody may set FORBIDDEN")
		}
	}
	return v.at(ctx, line{Event: "ValidateContainerAdjustment", Pod: req.Pod, Container: req.Container})
}
