package bridge

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
)

// plugin answers for our plugin type and leaves the others to the Exec that it wraps.
type plugin struct {
	invoke.Exec
	bridge *Bridge
}

func (p *plugin) FindInPath(name string, paths []string) (string, error) {
	if name == Type {
		return Type, nil
	}
	return p.Exec.FindInPath(name, paths)
}

func (p *plugin) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	if filepath.Base(path) != Type {
		return p.Exec.ExecPlugin(ctx, path, stdin, environ)
	}
	return p.bridge.watch(ctx, newCall(stdin, environ))
}

// call is one invocation of the plugin.
type call struct {
	verb, container, netns, ifName string
	stdin                          []byte
}

func newCall(stdin []byte, environ []string) *call {
	c := &call{stdin: stdin}
	for _, e := range environ {
		name, value, _ := strings.Cut(e, "=")
		switch name {
		case "CNI_COMMAND":
			c.verb = value
		case "CNI_CONTAINERID":
			c.container = value
		case "CNI_NETNS":
			c.netns = value
		case "CNI_IFNAME":
			c.ifName = value
		}
	}
	return c
}

// watch answers a call, or fails it when ctx or the time allowed ends. Work that hangs in the kernel
// cannot be killed: it goes on alone, keeps later calls for the same attachment waiting, and undoes
// itself when it comes back.
func (b *Bridge) watch(ctx context.Context, c *call) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, b.opts.Timeout,
		fmt.Errorf("no answer within %s: %w", b.opts.Timeout, context.DeadlineExceeded))
	type answer struct {
		out []byte
		err error
	}
	done := make(chan answer, 1)
	began := time.Now()
	go func() {
		defer cancel()
		out, err := b.answer(ctx, c)
		done <- answer{out, err}
	}()
	select {
	case a := <-done:
		return a.out, a.err
	case <-ctx.Done():
	}
	select {
	case a := <-done: // it may be the end of the work that ended ctx
		return a.out, a.err
	default:
		return nil, fmt.Errorf("%s %s was given up after %s: %w", Type, c.verb,
			time.Since(began).Round(time.Millisecond), context.Cause(ctx))
	}
}

func (b *Bridge) answer(ctx context.Context, c *call) ([]byte, error) {
	var out bytes.Buffer
	if c.verb == "VERSION" {
		err := version.All.Encode(&out)
		return out.Bytes(), err
	}
	conf, err := parseConf(c.stdin)
	if err != nil {
		return nil, err
	}
	s, err := b.segment(conf.Bridge) //nolint:contextcheck // what it begins outlives the call
	if err != nil {
		return nil, err
	}
	switch c.verb {
	case "STATUS":
		return nil, s.status(ctx, conf)
	case "GC":
		return nil, b.gc(ctx, s, conf)
	}
	id := attachmentID{Bridge: conf.Bridge, Container: c.container, IfName: c.ifName}
	unlock, err := b.locks.Lock(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("an earlier call for %s has not ended: %w", c.container, err)
	}
	kept := false
	defer func() {
		if !kept {
			unlock()
		}
	}()
	if b.hook != nil {
		b.hook(c.verb)
	}
	switch c.verb {
	case "ADD":
		var res *types100.Result
		res, err = s.add(ctx, id, c.netns, conf)
		if errdefs.IsResourceExhausted(err) && b.left(ctx, s) {
			res, err = s.add(ctx, id, c.netns, conf)
		}
		if err != nil {
			return nil, err
		}
		return printed(res, conf.CNIVersion)
	case "DEL":
		kept, err = s.leave(id)
		if kept {
			b.leaving.Go(func() { b.finish(s, id, unlock) })
		}
		return nil, err
	case "CHECK":
		return nil, s.check(id, c.netns)
	}
	return nil, fmt.Errorf("plugin %s: verb %q: %w", Type, c.verb, errdefs.ErrNotImplemented)
}

func printed(res types.Result, version string) ([]byte, error) {
	if version == "" {
		version = "0.1.0" // by the specification, what says nothing
	}
	res, err := res.GetAsVersion(version)
	if err != nil {
		return nil, fmt.Errorf("result: %w", err)
	}
	var out bytes.Buffer
	err = res.PrintTo(&out)
	return out.Bytes(), err
}
