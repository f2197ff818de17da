package wire_test

import (
	"testing"

	"gantry/internal/keeper/wire"
	"gantry/internal/shape"
)

// Server and keeper may be of different versions for as long as a container lives.
func TestFormatsOfTheKeepersMessages(t *testing.T) {
	shape.Check(t, map[string]any{
		"frame": new(wire.Frame), "create": new(wire.Create), "target": new(wire.Target), "pid": new(wire.Pid),
		"exec": new(wire.ExecRequest), "attach": new(wire.AttachRequest), "state": new(wire.State), "event": new(wire.Event),
		"names": new(wire.Names), "claim": new(wire.Claim), "ended": new(wire.Ended),
	})
}
