package daemon

import (
	"context"
	"path/filepath"

	"gantry/internal/engine/native"
	"gantry/internal/keeper"
	"gantry/internal/observe"
)

// tracedKeeper makes a span of every call of an OCI runtime that the keeper makes for a container.
type tracedKeeper struct {
	native.Keeper
	traces *observe.Traces
}

func (k *tracedKeeper) Create(ctx context.Context, req *keeper.Create) (int, error) {
	ctx, end := k.traces.Step(ctx, filepath.Base(req.Runtime.Path)+" create")
	pid, err := k.Keeper.Create(ctx, req)
	end(err)
	return pid, err
}

func (k *tracedKeeper) Start(ctx context.Context, key string) error {
	ctx, end := k.traces.Step(ctx, "runtime start")
	err := k.Keeper.Start(ctx, key)
	end(err)
	return err
}

func (k *tracedKeeper) Delete(ctx context.Context, key string) error {
	ctx, end := k.traces.Step(ctx, "runtime delete")
	err := k.Keeper.Delete(ctx, key)
	end(err)
	return err
}
