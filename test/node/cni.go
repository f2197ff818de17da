package node

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// BridgeConf is what most nodes have: bridge, host-local, which keeps its leases in dir, and portmap.
func BridgeConf(dir string) string { return strings.ReplaceAll(bridgeConf, "LEASES", dir) }

const bridgeConf = `{
  "cniVersion": "1.0.0",
  "name": "labnet",
  "plugins": [
    {
      "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
      "ipam": {
        "type": "host-local", "dataDir": "LEASES",
        "ranges": [[{"subnet": "10.86.0.0/16"}]],
        "routes": [{"dst": "0.0.0.0/0"}]
      }
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
`

// WriteCNI makes dir hold conf as its only configuration.
func WriteCNI(t testing.TB, dir, conf string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "10-lab.conflist"), []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
}
