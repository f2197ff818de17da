package worker

import (
	"os"
	"testing"

	"gantry/internal/keeper/wire"
)

// A process that is restored may end, and the holder say so, before its output is moved.
func TestExitWaitsForTheStreams(t *testing.T) {
	w := &Worker{opt: Options{StateDir: t.TempDir()}, containers: map[string]*container{}, ooms: watchOf(t, t.TempDir())}
	c := w.newContainer(saved{Create: wire.Create{Key: "c", Restore: "/checkpoint"}, Phase: phaseStarting, Pid: 1})
	w.containers["c"] = c
	exit := wire.Exit{Code: 3}
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := writeExit(c.dir, exit); err != nil {
		t.Fatal(err)
	}
	w.ended("c", exit)
	if e := c.state().Exit; e != nil {
		t.Errorf("%+v is announced before there is a stream", e)
	}
	c.run()
	if e := c.state().Exit; e == nil || e.Code != 3 {
		t.Errorf("exit %+v, want 3", e)
	}
}
