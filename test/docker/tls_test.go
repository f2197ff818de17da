package docker_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/labdocker"
	"gantry/test/node"
)

// tcpEndpoint is in the network namespace of the test's own machine.
const tcpEndpoint = "tcp://127.0.0.1:2376"

// TestTLS has dockerd listen at a TCP port, where it demands a certificate of its clients.
func TestTLS(t *testing.T) {
	for _, v := range labdocker.Versions() {
		t.Run(string(v), func(t *testing.T) {
			ours, other := newAuthority(t), newAuthority(t)
			cert, key := ours.sign("dockerd")
			d := labdocker.Start(t, labdocker.Options{Version: v, Flags: []string{
				"--host", tcpEndpoint, "--tlsverify", "--tlscacert", ours.file, "--tlscert", cert, "--tlskey", key,
			}})
			image := d.Busybox()
			t.Run("a pod's life", func(t *testing.T) {
				n := overTLS(t, ours, ours)
				pod, container := launch(n, "tls", "", node.Container("main", image, idle...))
				if got := n.Exec(container, "echo", "through", "TLS"); got != "through TLS\n" {
					t.Errorf("exec: %q", got)
				}
				n.Eventually("its log", func() bool { return strings.Contains(n.ReadLog(container), "stdout F up") })
				n.RemovePod(pod)
			})
			for name, c := range map[string]struct {
				who, trusts *authority
				says        string
			}{
				"a certificate that dockerd does not know": {other, ours, "certificate"},
				"a dockerd that we do not know":            {ours, other, "unknown authority"},
				"no certificate":                           {nil, ours, "certificate"},
				"no TLS":                                   {nil, nil, "HTTPS"},
			} {
				t.Run(name, func(t *testing.T) { refusedByTLS(overTLS(t, c.who, c.trusts), c.says) })
			}
			if left := d.Docker("ps", "-aq"); left != "" {
				t.Errorf("docker is left with %s", left)
			}
		})
	}
}

// overTLS starts a server whose certificate who signed, and which trusts what an authority signed.
func overTLS(t *testing.T, who, trusts *authority) *node.Node {
	t.Helper()
	flags := []string{"--engine", "docker", "--docker-endpoint", tcpEndpoint}
	if who != nil {
		cert, key := who.sign("gantry")
		flags = append(flags, "--docker-tls-cert", cert, "--docker-tls-key", key)
	}
	if trusts != nil {
		flags = append(flags, "--docker-tls-ca", trusts.file)
	}
	return node.Start(t, node.Options{Flags: flags})
}

// refusedByTLS finds the reason where people look for it.
func refusedByTLS(n *node.Node, says string) {
	n.T().Helper()
	r, err := n.Runtime.Status(n.Context(), &runtimeapi.StatusRequest{})
	if err != nil {
		n.T().Fatal(err)
	}
	for _, c := range r.Status.Conditions {
		if c.Type == "RuntimeReady" && (c.Status || !strings.Contains(c.Message, says)) {
			n.T().Errorf("status: %v; want it not ready, and %q", c, says)
		}
	}
	_, err = n.Runtime.RunPodSandbox(n.Context(), &runtimeapi.RunPodSandboxRequest{Config: n.Sandbox("refused")})
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), says) {
		n.T().Errorf("run a pod: %v; want Unavailable, and %q", err, says)
	}
	_, err = n.Images.PullImage(n.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "localhost/none:1"}})
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), says) {
		n.T().Errorf("pull: %v; want Unavailable, and %q", err, says)
	}
}

// authority signs certificates.
type authority struct {
	t    *testing.T
	file string // its own certificate
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t}
	a.cert = &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	a.file, _, a.key = a.write("authority", a.cert, nil)
	return a
}

// sign makes a certificate for a client or for a server at the loopback, and its key, as files.
func (a *authority) sign(name string) (cert, key string) {
	a.t.Helper()
	cert, key, _ = a.write(name, &x509.Certificate{
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}, a)
	return cert, key
}

// write makes a certificate signed by an authority, nil for its own key.
func (a *authority) write(name string, c *x509.Certificate, by *authority) (cert, key string, private *ecdsa.PrivateKey) {
	a.t.Helper()
	c.Subject = pkix.Name{CommonName: name}
	c.SerialNumber = big.NewInt(time.Now().UnixNano())
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	parent, signer := c, private
	if by != nil {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &private.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		a.t.Fatal(err)
	}
	dir := a.t.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: secret}} {
		if err = os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	return cert, key, private
}
