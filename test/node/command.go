package node

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Crictl runs crictl against the node and returns its standard output; it must exit 0.
func (n *Node) Crictl(args ...string) string {
	n.t.Helper()
	return n.mustRun(n.CrictlCommand(n.Context(), args...))
}

// CrictlCommand is crictl against the node, not started.
func (n *Node) CrictlCommand(ctx context.Context, args ...string) *exec.Cmd {
	n.t.Helper()
	// The machine's own crictl.yaml must not have a say.
	config := filepath.Join(n.Root, "crictl.yaml")
	if err := os.WriteFile(config, nil, 0o600); err != nil {
		n.t.Fatal(err)
	}
	all := append([]string{"--config", config, "--runtime-endpoint", n.Endpoint(), "--image-endpoint", n.Endpoint(), "--timeout", "60s"}, args...)
	return exec.CommandContext(ctx, Tool(n.t, "crictl"), all...)
}

// Gantry runs gantry's command line against the node and returns its standard output; it must exit 0.
func (n *Node) Gantry(args ...string) string {
	n.t.Helper()
	return n.mustRun(n.GantryCommand(n.Context(), args...))
}

// GantryCommand is gantry's command line against the node, not started.
func (n *Node) GantryCommand(ctx context.Context, args ...string) *exec.Cmd {
	n.t.Helper()
	return exec.CommandContext(ctx, Binary(n.t, "gantry"), append([]string{"--endpoint", n.Endpoint()}, args...)...)
}

func (n *Node) mustRun(cmd *exec.Cmd) string {
	n.t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		n.t.Fatalf("%s: %v\n%s%s", strings.Join(cmd.Args, " "), err, &stdout, &stderr)
	}
	return stdout.String()
}

// WriteJSON writes what crictl takes as a file and returns the path.
func (n *Node) WriteJSON(name string, v any) string {
	n.t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		n.t.Fatal(err)
	}
	dir := n.t.TempDir()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		n.t.Fatal(err)
	}
	return path
}
