// Package kube runs a Kubernetes cluster for tests: the unmodified programs of a release, built from
// source, one control plane and nodes whose container runtime is gantry. It runs in a machine that
// internal/lab made; each node has network and mount namespaces of its own in it, as a machine has.
package kube

import (
	"bytes"
	"context"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"gantry/internal/lab"
	"gantry/internal/labimage"
	"gantry/test/node"
)

// Options say what cluster a test wants.
type Options struct {
	Nodes   int             // 1 when 0
	Runtime string          // default OCI runtime of the nodes; "" leaves it to gantry
	Network string          // "cni" (Debian's bridge plugin) or "builtin"; "" is builtin for one node, cni for more
	Engine  string          // "docker": pods run on a Docker Engine of the node; "" leaves it to gantry
	Peer    string          // "containerd": it stands in gantry's place, to be compared
	Gates   map[string]bool // feature gates of the API server and the kubelets
	Flags   []string        // further flags of gantry serve
	Kubelet string          // of the kubelets' configuration, as YAML, what goes before the usual
	Disk    int             // MiB of a disk that gantry and the kubelet of each node have for themselves; 0: none
}

// Cluster is a cluster that ends with the test.
type Cluster struct {
	Root       string // everything of the cluster that is a file
	Logs       string // a log for each part
	Kubeconfig string // the administrator's
	Client     kubernetes.Interface
	REST       *rest.Config
	Registry   *labimage.Server
	Control    map[string]*Process
	Nodes      []*Node

	t       testing.TB
	options Options
	pki     *pki
	cgroup  string
}

// Start starts a cluster and waits until its nodes are Ready. What it logs is kept in
// GANTRY_CLUSTER_LOGS where that is set.
func Start(t testing.TB, o Options) *Cluster {
	t.Helper()
	c := prepare(t, o)
	c.startControl()
	for i := range c.options.Nodes {
		c.Nodes = append(c.Nodes, c.startNode(i+1))
	}
	for _, n := range c.Nodes {
		n.WaitReady()
	}
	c.connectNodes()
	return c
}

// prepare makes what a cluster stands on: its directories, its network and its registries.
func prepare(t testing.TB, o Options) *Cluster {
	t.Helper()
	o.Nodes = max(1, o.Nodes)
	if o.Network == "" {
		o.Network = "builtin"
		if o.Nodes > 1 {
			o.Network = "cni"
		}
	}
	c := &Cluster{t: t, options: o, cgroup: lab.Cgroup(t)}
	t.Cleanup(func() { node.KillCgroup(c.cgroup) })
	root, err := os.MkdirTemp("/tmp", "gantry-cluster")
	c.check("root", err)
	c.check("root", os.Chmod(root, 0o755)) // user namespaces need directories that others may pass
	t.Cleanup(func() {
		c.check("remove the cluster's files", os.RemoveAll(root))
	})
	c.Root, c.Logs = root, os.Getenv("GANTRY_CLUSTER_LOGS")
	if c.Logs == "" {
		c.Logs = c.dir("logs")
	}
	c.check("logs", os.MkdirAll(c.Logs, 0o755))
	c.pki, err = newPKI(c.dir("pki"))
	c.check("authority", err)
	c.startNetwork()
	c.Registry = labimage.Registry(t, labimage.Config{Listen: registry})
	c.pushImages()
	return c
}

func (c *Cluster) makeClient() {
	c.t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig)
	c.check("client", err)
	config.QPS = -1 // no limit: the tests are not what is tested
	c.REST = config
	c.Client, err = kubernetes.NewForConfig(config)
	c.check("client", err)
}

// Kubectl runs kubectl as the administrator and returns its standard output; it must exit 0.
func (c *Cluster) Kubectl(t testing.TB, args ...string) string {
	t.Helper()
	out, err := c.TryKubectl(t.Context(), "", args...)
	if err != nil {
		t.Fatalf("kubectl %s: %v", strings.Join(args, " "), err)
	}
	return out
}

// TryKubectl runs kubectl with stdin and returns its standard output; an error holds its standard error.
func (c *Cluster) TryKubectl(ctx context.Context, stdin string, args ...string) (string, error) {
	cmd := c.KubectlCommand(ctx, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), &commandError{err: err, stderr: stderr.String()}
	}
	return stdout.String(), nil
}

// KubectlCommand is kubectl as the administrator, not started.
func (c *Cluster) KubectlCommand(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, Program(c.t, "kubectl"), append([]string{"--kubeconfig", c.Kubeconfig}, args...)...)
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

type commandError struct {
	err    error
	stderr string
}

func (e *commandError) Error() string { return e.err.Error() + ": " + e.stderr }
func (e *commandError) Unwrap() error { return e.err }

// gates is the value of --feature-gates.
func (c *Cluster) gates() string {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(c.options.Gates)) {
		value := "false"
		if c.options.Gates[name] {
			value = "true"
		}
		all = append(all, name+"="+value)
	}
	return strings.Join(all, ",")
}

// Excerpt returns the lines of a part's log that contain one of words.
func (c *Cluster) Excerpt(part string, words ...string) []string {
	data, err := os.ReadFile(filepath.Join(c.Logs, part+".log"))
	if err != nil {
		return []string{err.Error()}
	}
	var found []string
	for line := range strings.Lines(string(data)) {
		if slices.ContainsFunc(words, func(w string) bool { return strings.Contains(line, w) }) {
			found = append(found, strings.TrimSpace(line))
		}
	}
	return found
}
