package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/client-go/util/exec"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// IO are the user's streams; nil ones are not wanted. With a terminal Stderr stays nil.
type IO struct {
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
	TTY    bool
	// Sizes delivers the terminal's sizes; nil without a terminal.
	Sizes remotecommand.TerminalSizeQueue
}

// Exec runs a command in a container and returns its exit code.
func (c *Client) Exec(ctx context.Context, id string, command []string, streams IO) (int, error) {
	resp, err := c.Runtime.Exec(ctx, &v1.ExecRequest{
		ContainerId: id, Cmd: command, Tty: streams.TTY,
		Stdin: streams.Stdin != nil, Stdout: true, Stderr: !streams.TTY,
	})
	if err != nil {
		return 0, fmt.Errorf("exec: %w", err)
	}
	return stream(ctx, resp.Url, streams)
}

// Attach connects to a container's own streams until it ends or the user leaves.
func (c *Client) Attach(ctx context.Context, id string, streams IO) error {
	resp, err := c.Runtime.Attach(ctx, &v1.AttachRequest{
		ContainerId: id, Tty: streams.TTY,
		Stdin: streams.Stdin != nil, Stdout: true, Stderr: !streams.TTY,
	})
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	_, err = stream(ctx, resp.Url, streams)
	return err
}

func stream(ctx context.Context, rawURL string, s IO) (int, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return 0, fmt.Errorf("streaming URL: %w", err)
	}
	ex, err := remotecommand.NewSPDYExecutor(streamConfig(), http.MethodPost, u)
	if err != nil {
		return 0, fmt.Errorf("connect to %s: %w", u.Host, err)
	}
	err = ex.StreamWithContext(ctx, remotecommand.StreamOptions{
		Stdin: s.Stdin, Stdout: s.Stdout, Stderr: s.Stderr, Tty: s.TTY, TerminalSizeQueue: s.Sizes,
	})
	var exit exec.CodeExitError
	if errors.As(err, &exit) {
		return exit.Code, nil
	}
	return 0, err
}

// streamConfig: the server's certificate, where it has one, is its own; the URL came over a socket
// that only root can open and holds a token for one use.
func streamConfig() *rest.Config {
	return &rest.Config{TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
}

// Forward is a request to forward local ports to a pod's.
type Forward struct {
	Addresses []string // local ones
	Ports     []string // "LOCAL:REMOTE" or "REMOTE"
	Out       io.Writer
	Err       io.Writer
}

// PortForward listens on local ports and forwards connections until ctx ends.
func (c *Client) PortForward(ctx context.Context, podID string, f Forward) error {
	resp, err := c.Runtime.PortForward(ctx, &v1.PortForwardRequest{PodSandboxId: podID})
	if err != nil {
		return fmt.Errorf("port-forward: %w", err)
	}
	u, err := url.Parse(resp.Url)
	if err != nil {
		return fmt.Errorf("streaming URL: %w", err)
	}
	transport, upgrader, err := spdy.RoundTripperFor(streamConfig())
	if err != nil {
		return fmt.Errorf("connect to %s: %w", u.Host, err)
	}
	dialer := spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, http.MethodPost, u)
	fw, err := portforward.NewOnAddressesForStreamingWithContext(ctx, dialer, f.Addresses, f.Ports, make(chan struct{}), f.Out, f.Err)
	if err != nil {
		return fmt.Errorf("port-forward: %w", err)
	}
	if err := fw.ForwardPorts(); err != nil && ctx.Err() == nil {
		return fmt.Errorf("port-forward: %w", err)
	}
	return nil
}
