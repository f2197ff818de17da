package nri

import (
	"log/slog"
	"testing"

	"github.com/containerd/ttrpc"
)

// A plugin whose connection ends between its synchronization and the note of it is not there.
func TestPluginThatLeavesAsItJoins(t *testing.T) {
	r := newRoster(slog.New(slog.DiscardHandler), nil)
	for _, c := range []struct {
		name  string
		stays bool
	}{{"10-leaves", false}, {"20-stays", true}} {
		connection := new(ttrpc.Client)
		r.joining = connection
		if !c.stays {
			r.gone(connection)
		}
		r.note(c.name, "Synchronize", nil)
	}
	if all := r.list(); len(all) != 1 || all[0].Name != "20-stays" || !r.any() {
		t.Errorf("the plugins are %+v", all)
	}
}
