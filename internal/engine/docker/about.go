package docker

import (
	"context"
	"fmt"

	"github.com/moby/moby/client"
)

// About is what a daemon says of itself, for people.
type About struct {
	Version      string // such as 28.0.1
	API          string // the version that is spoken
	CgroupDriver string // "cgroupfs" or "systemd"
	LiveRestore  bool   // containers go on while the daemon does not run
}

// Ask asks the daemon at o.Endpoint about itself. One that is not there, hangs or is too old is errdefs.ErrUnavailable.
func Ask(ctx context.Context, o Options) (*About, error) {
	d, err := connect(o)
	if err != nil {
		return nil, err
	}
	defer func() { _ = d.api.Close() }()
	if err = d.check(ctx); err != nil {
		return nil, err
	}
	r, err := call(ctx, d, func(ctx context.Context) (client.SystemInfoResult, error) {
		return d.api.Info(ctx, client.InfoOptions{})
	})
	if err != nil {
		return nil, fmt.Errorf("ask docker about itself: %w", d.cannotSay(err))
	}
	n, err := nodeOf(r.Info, d.api.ClientVersion(), 0)
	if err != nil {
		return nil, err
	}
	return &About{Version: r.Info.ServerVersion, API: n.api, CgroupDriver: string(n.driver), LiveRestore: r.Info.LiveRestoreEnabled}, nil
}
