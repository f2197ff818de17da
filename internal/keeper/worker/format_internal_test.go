package worker

import (
	"testing"

	"gantry/internal/keeper/wire"
	"gantry/internal/shape"
)

func TestFormatsOfTheKeepersRecords(t *testing.T) {
	shape.Check(t, map[string]any{"container": new(saved), "exec": new(execSaved), "exit": new(wire.Exit)})
}
