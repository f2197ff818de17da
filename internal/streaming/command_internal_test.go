package streaming

import (
	"io"
	"testing"

	"gantry/internal/engine"
)

// What is no size ends the sizes, and holds back nothing that comes behind it.
func TestWhatIsNoSizeHoldsBackNothing(t *testing.T) {
	r, w := io.Pipe()
	out := sizes(r)
	for _, message := range []string{`{"Width": 80, "Height": 24}`, "none", "and more", `{"Width": 81, "Height": 25}`} {
		if _, err := io.WriteString(w, message); err != nil {
			t.Fatal(err)
		}
	}
	_ = w.Close()
	if size := <-out; size != (engine.Size{Width: 80, Height: 24}) {
		t.Errorf("the size is %+v", size)
	}
	if size, more := <-out; more {
		t.Errorf("another size %+v", size)
	}
}
