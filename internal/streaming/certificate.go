package streaming

import (
	"crypto/tls"
	"fmt"
)

// Certificate returns the options of a server that shows the certificate in these PEM files. They are
// read again for every connection, so that a renewed certificate needs no restart; they must be good
// now.
func Certificate(cert, key string) (*tls.Config, error) {
	load := func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		c, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("load the streaming certificate: %w", err)
		}
		return &c, nil
	}
	if _, err := load(nil); err != nil {
		return nil, err
	}
	return &tls.Config{GetCertificate: load, MinVersion: tls.VersionTLS12}, nil
}
