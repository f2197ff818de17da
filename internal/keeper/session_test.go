package keeper_test

import (
	"os"
	"path/filepath"
	"testing"

	"gantry/internal/keeper"
	"gantry/internal/keeper/wire"
)

// shortLived serves one request of a connection after the other, each as a worker that dies where answers has nothing
// more for it.
func shortLived(t *testing.T, socket string, answers [][]*wire.Frame) {
	t.Helper()
	fd, err := wire.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	listener := os.NewFile(uintptr(fd), "listener")
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for _, frames := range answers {
			conn, err := wire.Accept(listener)
			if err != nil {
				return
			}
			asked, fds, err := conn.Receive()
			wire.CloseAll(fds)
			for _, f := range frames {
				if err == nil {
					f.ID = asked.ID
					err = conn.Send(f)
				}
			}
			_ = conn.Close()
		}
	}()
}

func frameOf(t *testing.T, op string, body any) *wire.Frame {
	t.Helper()
	f := &wire.Frame{Op: op}
	if err := f.SetBody(body); err != nil {
		t.Fatal(err)
	}
	return f
}

// An exec goes on through the death of each worker that is asked for it, at whatever moment.
func TestExecThroughWorkersThatDieOneAfterTheOther(t *testing.T) {
	state := t.TempDir()
	pid, end := frameOf(t, "", wire.Pid{Pid: 7}), frameOf(t, wire.OpEnd, wire.Exit{Code: 13})
	shortLived(t, filepath.Join(state, wire.SocketName), [][]*wire.Frame{
		{{}},       // ping
		nil,        // exec
		nil, {pid}, // it is waited for
		nil, nil, {pid, end},
	})
	c, err := keeper.Connect(t.Context(), keeper.Options{StateDir: state, Binary: "/no/such/keeper"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	s, err := c.Exec(t.Context(), &keeper.Exec{Key: "c", Process: []byte("{}")})
	if err != nil || s.Pid != 7 {
		t.Fatalf("exec: %+v, %v", s, err)
	}
	if e, err := s.Wait(t.Context()); err != nil || e.Code != 13 {
		t.Errorf("exit %+v, %v; want 13", e, err)
	}
}
