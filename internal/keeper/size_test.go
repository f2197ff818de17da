package keeper_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestKeeperIsSmall keeps the keeper what its promise needs: little code, and none that is not the
// standard library's, x/sys or our own.
func TestKeeperIsSmall(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", "gantry/cmd/gantry-keeper").Output()
	if err != nil {
		t.Fatal(err)
	}
	allowed := map[string]bool{
		"golang.org/x/sys/unix": true, "gantry/cmd/gantry-keeper": true,
		"gantry/internal/atomicfile": true, "gantry/internal/keylock": true, "gantry/internal/crilog": true, "gantry/internal/killpoint": true,
		"gantry/internal/keeper/wire": true, "gantry/internal/keeper/holder": true, "gantry/internal/keeper/worker": true, "gantry/internal/keeper/logdriver": true,
	}
	for _, path := range strings.Fields(string(out)) {
		if !allowed[path] {
			t.Errorf("gantry-keeper depends on %s", path)
		}
	}
	all, err := exec.Command("go", "list", "-deps", "gantry/cmd/gantry-keeper").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range strings.Fields(string(all)) {
		if path == "net" || path == "net/http" || path == "crypto/tls" {
			t.Errorf("gantry-keeper depends on %s", path)
		}
	}
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Size() > 6<<20 {
		t.Errorf("gantry-keeper: %d bytes, %v", info.Size(), err)
	}
}
