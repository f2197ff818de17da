package doctor

import (
	"context"
	"io"
	"log/slog"
	"os"

	"gantry/internal/bridge"
	"gantry/internal/cni"
)

func checkNetwork(ctx context.Context, n *node) []Finding {
	if n.Config.Network.Mode == "builtin" {
		return checkBuiltin(ctx)
	}
	return checkCNI(ctx, n)
}

func checkBuiltin(ctx context.Context) []Finding {
	problems, err := bridge.Check(ctx)
	if err != nil {
		return one(Fail, "builtin network: "+err.Error(), "modprobe nf_tables, or use --network cni")
	}
	if len(problems) == 0 {
		return one(OK, "builtin network: nftables, forwarding", "")
	}
	var found []Finding
	for _, p := range problems {
		found = append(found, Finding{Level: Warn, Message: p})
	}
	return found
}

// checkCNI asks what the server would ask, with a cache of its own.
func checkCNI(ctx context.Context, n *node) []Finding {
	cache, err := os.MkdirTemp("", "gantry-doctor-")
	if err != nil {
		return one(Fail, err.Error(), "")
	}
	defer func() { _ = os.RemoveAll(cache) }()
	c := n.Config.Network
	net, err := cni.New(cni.Options{
		ConfDir: c.CNIConfDir, BinDirs: c.CNIBinDirs, CacheDir: cache,
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		return one(Fail, "CNI: "+err.Error(), "")
	}
	defer func() { _ = net.Close() }()
	if err := net.Status(ctx); err != nil {
		return one(Fail, "CNI: "+err.Error(),
			"install plugins (Debian: containernetworking-plugins, in /usr/lib/cni) and a configuration in "+c.CNIConfDir+", or use --network builtin, which needs neither")
	}
	return one(OK, "CNI: configuration in "+c.CNIConfDir+", its plugins answer", "")
}
