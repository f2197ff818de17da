package worker

import (
	"os"
	"slices"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"gantry/internal/keeper/wire"
)

// A new holder gets what there is, also where a descriptor of some container was closed at that moment.
func TestHandOverGoesOnBehindADescriptorThatIsGone(t *testing.T) {
	w, good, holder := linked(t, saved{Create: wire.Create{Key: "good"}, Phase: phaseRunning})
	listener, err := os.Open(os.DevNull) // stands for it
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	fd := int(listener.Fd())
	good.held[filePidfd] = fd
	want := []string{wire.SocketName, "good/" + filePidfd}
	for i := range 10 {
		key := strconv.Itoa(i)
		c := w.newContainer(saved{Create: wire.Create{Key: key}, Phase: phaseRunning})
		c.held[fileLog], c.held[filePidfd] = 1<<30, fd // of which the first is none
		w.containers[key] = c
		want = append(want, key+"/"+filePidfd)
	}
	if err := w.handOverAll(fd); err == nil {
		t.Error("that some descriptors are gone was not told")
	}
	if err := w.holder.Load().Close(); err != nil {
		t.Fatal(err)
	}
	var got []string
	for {
		f, fds, err := holder.Receive()
		if err != nil {
			break
		}
		var m wire.Names
		if err := f.Into(&m); err != nil || len(m.Names) != len(fds) {
			t.Fatalf("%d names, %d descriptors, %v", len(m.Names), len(fds), err)
		}
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
		got = append(got, m.Names...)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("the holder has %v, want %v", got, want)
	}
}
