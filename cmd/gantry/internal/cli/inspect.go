package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/cmd/gantry/internal/client"
)

func (a *app) inspectCommand() *cobra.Command {
	return &cobra.Command{
		Use: "inspect POD|CONTAINER|IMAGE...", Short: "Print everything the server knows about something, as JSON",
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				var all []any
				for _, arg := range args {
					v, err := inspect(ctx, c, arg)
					if err != nil {
						return err
					}
					all = append(all, v)
				}
				return printJSON(a.out, all)
			})
		},
	}
}

func inspect(ctx context.Context, c *client.Client, arg string) (any, error) {
	t, err := c.PodOrContainer(ctx, arg)
	switch {
	case err != nil && !client.NotFound(err):
		return nil, err
	case err == nil && t.Pod != nil:
		return inspectPod(ctx, c, t.Pod.Id)
	case err == nil:
		return inspectContainer(ctx, c, t.Container.Id)
	}
	resp, err := c.Images.ImageStatus(ctx, &v1.ImageSpec{Image: arg}, true)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", arg, err)
	}
	if resp.Image == nil {
		return inspectHidden(ctx, c, arg)
	}
	return view("image", resp.Image, resp.Info)
}

func inspectPod(ctx context.Context, c *client.Client, id string) (any, error) {
	resp, err := c.Runtime.PodSandboxStatus(ctx, id, true)
	if err != nil {
		return nil, fmt.Errorf("pod %s: %w", client.Short(id), err)
	}
	return view("pod", resp.Status, resp.Info)
}

// inspectHidden is for what no list shows, because it is being made or removed, or hangs in that: the
// server's status says at which step. Arg is an id's beginning or a name, with a namespace or without.
func inspectHidden(ctx context.Context, c *client.Client, arg string) (any, error) {
	resp, err := c.Runtime.Status(ctx, true)
	if err != nil {
		return nil, fmt.Errorf("status: %w", err)
	}
	for key, value := range resp.Info {
		kind, short, _ := strings.Cut(key, ".")
		var text string
		if (kind != "pod" && kind != "container") || json.Unmarshal([]byte(value), &text) != nil {
			continue
		}
		name, said, _ := strings.Cut(text, ": ")
		if name == arg || strings.HasSuffix(name, "/"+arg) || strings.HasPrefix(arg, short) || strings.HasPrefix(short, arg) {
			return map[string]any{"kind": kind, "info": map[string]string{"id": short, "name": name, "activity": said}}, nil
		}
	}
	return nil, fmt.Errorf("no pod, container or image %q", arg)
}

func inspectContainer(ctx context.Context, c *client.Client, id string) (any, error) {
	resp, err := c.Runtime.ContainerStatus(ctx, id, true)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", client.Short(id), err)
	}
	return view("container", resp.Status, resp.Info)
}

// view joins a status and the verbose information, which is JSON where it can be.
func view(kind string, status proto.Message, info map[string]string) (any, error) {
	data, err := protojson.Marshal(status)
	if err != nil {
		return nil, fmt.Errorf("write JSON: %w", err)
	}
	more := map[string]any{}
	for k, text := range info {
		if json.Valid([]byte(text)) {
			more[k] = json.RawMessage(text)
		} else {
			more[k] = text
		}
	}
	return map[string]any{"kind": kind, "status": json.RawMessage(data), "info": more}, nil
}
