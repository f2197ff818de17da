package holder

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"gantry/internal/keeper/wire"
)

// A worker may hear of an exit too early, when it is just making the container, and then looks for the record. One that no
// disk had taken by then is told again when it is there.
func TestExitThatIsRecordedLateIsToldAgain(t *testing.T) {
	ours, theirs, err := wire.Pair()
	if err != nil {
		t.Fatal(err)
	}
	link, linkErr := wire.NewConn(ours)
	worker, workerErr := wire.NewConn(theirs)
	if err := errors.Join(linkErr, workerErr); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = worker.Close() }()
	dir := filepath.Join(t.TempDir(), "c")
	if err := os.WriteFile(dir, nil, 0o600); err != nil { // nothing can be written there
		t.Fatal(err)
	}
	h := &holder{link: link, claims: map[int]wire.Claim{7: {Key: "c", Pid: 7, Dir: dir}}, unwritten: map[string]unwritten{}}
	h.record(7, wire.Exit{Code: 3})
	h.writeAgain()
	if err := errors.Join(os.Remove(dir), os.Mkdir(dir, 0o700)); err != nil {
		t.Fatal(err)
	}
	h.writeAgain()
	if err := link.Close(); err != nil {
		t.Fatal(err)
	}
	for _, which := range []string{"when it happened", "when it was recorded"} {
		f, _, err := worker.Receive()
		if err != nil {
			t.Fatalf("the exit was not told %s: %v", which, err)
		}
		var e wire.Ended
		if err := f.Into(&e); err != nil || f.Op != wire.OpExit || e.Key != "c" || e.Exit.Code != 3 {
			t.Errorf("%s %+v, %v", f.Op, e, err)
		}
	}
}
