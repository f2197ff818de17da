package doctor

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"

	"gantry/internal/ociruntime"
)

func checkRuntimes(ctx context.Context, n *node) []Finding {
	c := n.Config.Runtime
	if len(c.Paths) == 0 {
		return one(Fail, "no OCI runtime: neither crun nor runc is on PATH", "apt-get install crun, dnf install crun, or --runtime NAME=PATH")
	}
	var found []Finding
	for _, name := range slices.Sorted(maps.Keys(c.Paths)) {
		f := Finding{Level: OK, Message: name}
		if name == c.Default {
			f.Message += " (default)"
		}
		features, err := ociruntime.Probe(ctx, c.Paths[name])
		if err != nil {
			f.Level, f.Mend = Warn, "install it, or correct runtime.paths"
			if name == c.Default {
				f.Level = Fail
			}
			f.Message += ": " + err.Error()
		} else {
			f.Message += fmt.Sprintf(": %s, version %s", c.Paths[name], features.Version)
		}
		found = append(found, f)
	}
	return found
}

func checkKeeper(_ context.Context, n *node) []Finding {
	path := n.Config.Keeper.Binary
	if path == "" {
		return one(Fail, "gantry-keeper is neither beside the gantry binary nor on PATH", "install it there, or --keeper PATH")
	}
	st, err := os.Stat(path)
	switch {
	case err != nil:
		return one(Fail, err.Error(), "install it, or --keeper PATH")
	case !st.Mode().IsRegular() || st.Mode()&0o111 == 0:
		return one(Fail, path+" is not an executable file", "chmod +x "+path)
	}
	return one(OK, path, "")
}
