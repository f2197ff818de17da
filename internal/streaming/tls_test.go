package streaming_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/url"
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
	cert, authority := certificate(t)
	s := start(t, b, streaming.Options{TLS: &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}})
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

// certificate returns one for 127.0.0.1 and what a client trusts it by.
func certificate(t *testing.T) (cert tls.Certificate, authority []byte) {
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
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
