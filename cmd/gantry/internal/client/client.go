// Package client is the command line's side of the CRI: a connection, names for ids, and streams.
package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis"
	remote "k8s.io/cri-client/pkg"
)

// DefaultEndpoint is where `gantry serve` listens when it was told nothing.
const DefaultEndpoint = "unix:///run/gantry/gantry.sock"

// callTimeout bounds every call but pulls and streams. It is longer than the server's own bounds,
// so that the server's reason is what the user sees.
const callTimeout = 4 * time.Minute

// connectTimeout bounds the first answer. Where nobody listens it is not waited for.
const connectTimeout = 30 * time.Second

// Client speaks CRI v1 to one server.
type Client struct {
	Runtime cri.RuntimeService
	Images  cri.ImageManagerService
}

// Connect connects to the endpoint ("unix:///path", or a path) and checks that a server answers.
func Connect(ctx context.Context, endpoint string) (*Client, error) {
	if !strings.Contains(endpoint, "://") {
		endpoint = "unix://" + endpoint
	}
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	rt, err := remote.NewRemoteRuntimeServiceBuilder().
		WithEndpoint(endpoint).WithConnectionTimeout(callTimeout).WithTracerProvider(nil).Build(ctx)
	if err != nil {
		return nil, fmt.Errorf("no server answers at %s: %s (is gantry serve running?)", endpoint, reason(err))
	}
	img, err := remote.NewRemoteImageServiceBuilder().
		WithEndpoint(endpoint).WithConnectionTimeout(callTimeout).WithTracerProvider(nil).Build(ctx)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("image service at %s: %w", endpoint, err), rt.Close(ctx))
	}
	return &Client{Runtime: rt, Images: img}, nil
}

// Close closes the connections.
func (c *Client) Close(ctx context.Context) error {
	return errors.Join(c.Runtime.Close(ctx), c.Images.Close(ctx))
}

// Message is what err says, without the frame that gRPC puts around a server's words.
func Message(err error) string {
	var s interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &s) {
		return err.Error()
	}
	inner, ok := s.(error)
	if !ok {
		return err.Error()
	}
	return strings.Replace(err.Error(), inner.Error(), s.GRPCStatus().Message(), 1)
}

// reason is the last cause of a connection error.
func reason(err error) string {
	var s interface{ GRPCStatus() *status.Status }
	if errors.As(err, &s) {
		return s.GRPCStatus().Message()
	}
	return err.Error()
}

// NotFound says whether the server does not know what was asked for.
func NotFound(err error) bool {
	return status.Code(err) == codes.NotFound || errors.Is(err, errNotFound)
}

// HasTerminal says whether a container was created with a terminal. The CRI does not tell, so the
// verbose status is asked; a server that does not say so either has none.
func (c *Client) HasTerminal(ctx context.Context, id string) (bool, error) {
	resp, err := c.Runtime.ContainerStatus(ctx, id, true)
	if err != nil {
		return false, fmt.Errorf("container %s: %w", Short(id), err)
	}
	var info struct {
		Config struct {
			TTY bool `json:"tty"`
		} `json:"config"`
	}
	_ = json.Unmarshal([]byte(resp.Info["info"]), &info) // another server's may be no JSON
	return info.Config.TTY, nil
}
