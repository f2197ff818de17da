package kube

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// Addresses of the cluster. Each cluster has a machine of its own (internal/lab), so they are constant.
const (
	bridge      = "k8s0"
	controlIP   = "10.77.0.1"
	nodePrefix  = "10.77.0."
	podCIDR     = "10.244.0.0/16"
	serviceCIDR = "10.96.0.0/16"
	apiService  = "10.96.0.1"
	apiServer   = "https://" + controlIP + ":6443"
	registry    = controlIP + ":5000"

	lockedRegistry = controlIP + ":5001"
)

// readyTime is how long a part may take until it answers; a slow machine is not a dead part.
const readyTime = 3 * time.Minute

// identities are the users of the cluster's certificates: what RBAC's bootstrap policy knows.
var identities = []struct {
	name, user string
	groups     []string
	hosts      []string
}{
	{"admin", "admin", []string{"system:masters"}, nil},
	{"apiserver", "kube-apiserver", []string{"system:masters"}, []string{controlIP, apiService, "127.0.0.1", "kubernetes.default.svc"}},
	{"controller-manager", "system:kube-controller-manager", nil, []string{controlIP, "127.0.0.1"}},
	{"scheduler", "system:kube-scheduler", nil, []string{controlIP, "127.0.0.1"}},
	{"proxy", "system:kube-proxy", nil, nil},
	{"service-accounts", "service-accounts", nil, nil},
}

// startControl starts etcd, the API server, the controller manager and the scheduler.
func (c *Cluster) startControl() {
	c.t.Helper()
	for _, i := range identities {
		c.check("certificate", c.pki.issue(i.name, i.user, i.groups, i.hosts))
	}
	c.Kubeconfig = c.kubeconfig("admin")
	c.Control = map[string]*Process{}
	for _, part := range []struct {
		name string
		args []string
	}{
		{"etcd", []string{
			"--data-dir", c.dir("etcd"), "--listen-client-urls", "http://127.0.0.1:2379", "--advertise-client-urls", "http://127.0.0.1:2379",
			"--listen-peer-urls", "http://127.0.0.1:2380", "--unsafe-no-fsync", "--log-level", "warn",
		}},
		{"kube-apiserver", c.apiServerArgs()},
		{"kube-controller-manager", []string{
			"--kubeconfig", c.kubeconfig("controller-manager"), "--authentication-kubeconfig", c.kubeconfig("controller-manager"),
			"--authorization-kubeconfig", c.kubeconfig("controller-manager"), "--bind-address", "127.0.0.1",
			"--allocate-node-cidrs", "--cluster-cidr", podCIDR, "--service-cluster-ip-range", serviceCIDR, "--use-service-account-credentials",
			"--root-ca-file", c.pki.path("ca.crt"), "--service-account-private-key-file", c.pki.path("service-accounts.key"),
			"--cluster-signing-cert-file", c.pki.path("ca.crt"), "--cluster-signing-key-file", c.pki.path("ca.key"), "--leader-elect=false",
		}},
		{"kube-scheduler", []string{
			"--kubeconfig", c.kubeconfig("scheduler"), "--authentication-kubeconfig", c.kubeconfig("scheduler"),
			"--authorization-kubeconfig", c.kubeconfig("scheduler"), "--bind-address", "127.0.0.1", "--leader-elect=false",
		}},
	} {
		c.Control[part.name] = run(c.t, c.Logs, part.name, func() *exec.Cmd {
			return exec.Command(Program(c.t, part.name), part.args...)
		})
		if part.name == "kube-apiserver" {
			c.connect()
		}
	}
}

func (c *Cluster) apiServerArgs() []string {
	return []string{
		"--etcd-servers", "http://127.0.0.1:2379", "--bind-address", "0.0.0.0", "--advertise-address", controlIP, "--secure-port", "6443",
		"--service-cluster-ip-range", serviceCIDR, "--authorization-mode", "Node,RBAC", "--enable-admission-plugins", "NodeRestriction",
		"--allow-privileged", "--client-ca-file", c.pki.path("ca.crt"),
		"--tls-cert-file", c.pki.path("apiserver.crt"), "--tls-private-key-file", c.pki.path("apiserver.key"),
		"--kubelet-client-certificate", c.pki.path("apiserver.crt"), "--kubelet-client-key", c.pki.path("apiserver.key"),
		"--kubelet-certificate-authority", c.pki.path("ca.crt"), "--kubelet-preferred-address-types", "InternalIP",
		"--service-account-issuer", apiServer, "--service-account-key-file", c.pki.path("service-accounts.pub"),
		"--service-account-signing-key-file", c.pki.path("service-accounts.key"), "--api-audiences", apiServer,
		"--feature-gates", c.gates(), "--enable-aggregator-routing", "--requestheader-client-ca-file", c.pki.path("ca.crt"),
		"--requestheader-allowed-names", "kube-apiserver",
		"--requestheader-username-headers", "X-Remote-User", "--requestheader-group-headers", "X-Remote-Group",
		"--requestheader-extra-headers-prefix", "X-Remote-Extra-",
		"--proxy-client-cert-file", c.pki.path("apiserver.crt"), "--proxy-client-key-file", c.pki.path("apiserver.key"),
	}
}

// connect waits for the API server and makes the client.
func (c *Cluster) connect() {
	c.t.Helper()
	c.makeClient()
	ctx, cancel := context.WithTimeout(c.t.Context(), readyTime)
	defer cancel()
	for tick := time.NewTicker(200 * time.Millisecond); ; {
		_, err := c.Client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		if err == nil {
			return
		}
		if !c.Control["kube-apiserver"].Running() {
			cancel()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			c.t.Fatalf("the API server is not ready: %v\n%s\n%s", err, c.Control["etcd"].tail(), c.Control["kube-apiserver"].tail())
		}
	}
}

// kubeconfig returns the path of the configuration of one of the identities.
func (c *Cluster) kubeconfig(name string) string {
	c.t.Helper()
	path, err := c.pki.kubeconfig(name, apiServer)
	c.check("kubeconfig", err)
	return path
}

// dir makes a directory below the cluster's root and returns its path.
func (c *Cluster) dir(name string) string {
	c.t.Helper()
	path := filepath.Join(c.Root, name)
	c.check("directory", os.MkdirAll(path, 0o755))
	return path
}

// write makes a file below the cluster's root and returns its path.
func (c *Cluster) write(name, content string) string {
	c.t.Helper()
	path := filepath.Join(c.Root, name)
	c.check("directory", os.MkdirAll(filepath.Dir(path), 0o755))
	c.check("file", os.WriteFile(path, []byte(content), 0o600))
	return path
}

func (c *Cluster) check(what string, err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(fmt.Errorf("%s: %w", what, err))
	}
}

// Program returns the path of one of Kubernetes' programs, built by the Makefile.
func Program(t testing.TB, name string) string {
	t.Helper()
	path := filepath.Join(os.Getenv("GANTRY_TOOLS"), "kubernetes", name)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%s is not there: `make cluster` builds it", path)
	}
	return path
}
