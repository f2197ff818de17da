package streaming_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/engine"
	"gantry/internal/streaming"
)

// Over every protocol a client that trusts the certificate is served, and one that does not is none.
func TestTLS(t *testing.T) {
	b := &backend{exec: func(_ context.Context, req *engine.Exec) (int32, error) {
		_, err := io.WriteString(req.IO.Stdout, "safe")
		return 0, err
	}}
	cert, key := filepath.Join(t.TempDir(), "cert.pem"), filepath.Join(t.TempDir(), "key.pem")
	if _, err := streaming.Certificate(cert, key); err == nil {
		t.Error("a certificate that is not there was taken")
	}
	certificate(t, cert, key)
	conf, err := streaming.Certificate(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	s := start(t, b, streaming.Options{TLS: conf})
	authority := certificate(t, cert, key) // a renewed one, which the next connection gets
	for _, p := range protocols {
		t.Run(p.name, func(t *testing.T) {
			u, err := url.Parse(execAddress(t, s, &cri.ExecRequest{Stdout: true}))
			if err != nil || u.Scheme != "https" {
				t.Fatalf("%v, the address is %s", err, u)
			}
			for _, ca := range [][]byte{nil, authority} {
				e, err := p.connect(&rest.Config{Host: u.Host, TLSClientConfig: rest.TLSClientConfig{CAData: ca}}, u)
				if err != nil {
					t.Fatal(err)
				}
				var out strings.Builder
				err = e.StreamWithContext(t.Context(), remotecommand.StreamOptions{Stdout: &out})
				if trusted := ca != nil; trusted != (err == nil) || trusted != (out.String() == "safe") {
					t.Errorf("trusted: %t, got %v, %q", trusted, err, out.String())
				}
			}
		})
	}
}

// certificate writes one for 127.0.0.1, and returns what a client trusts it by.
func certificate(t *testing.T, certFile, keyFile string) (authority []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	authority = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	for path, b := range map[string][]byte{certFile: authority, keyFile: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})} {
		if err = os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return authority
}
