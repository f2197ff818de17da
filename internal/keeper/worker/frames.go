package worker

import (
	"time"

	"gantry/internal/keeper/logdriver"
)

// frames are the frames of dockerd: each is an entry, of either source. Their lineState has a bit, logdriver.Of, for a
// source of whose line some was dropped and more is to come; whose line the log has in part stands in the stage. As long
// as one is cut, a batch is one frame.
type frames struct{ st *stage }

func (frames) ready(raw []byte, room int) int { return logdriver.Ready(raw, room) }

// The last piece of a line that was cut, whose beginning the log has, ends it there with nothing in it: a reader would
// take its content for what follows the beginning.
func (frames) entries(dst []byte, _ time.Time, raw []byte, was lineState) []byte {
	if e, _, ok := logdriver.First(raw); ok && isCut(was, &e) {
		raw = logdriver.Append(nil, &logdriver.Entry{Source: e.Source, Time: e.Time})
	}
	return logdriver.Format(dst, raw)
}

func isCut(was lineState, e *logdriver.Entry) bool { return was&cutOf(e) != 0 }

func cutOf(e *logdriver.Entry) lineState { return lineState(logdriver.Of(e.Source)) }

// The rest of a frame that its writer did not finish is no entry.
func (frames) flushes() bool { return false }

func (frames) kept(was lineState, raw []byte) lineState {
	for e := range logdriver.All(raw) {
		if !e.Partial {
			was &^= cutOf(e)
		}
	}
	return was
}

func (f frames) dropped(was lineState, raw []byte) lineState {
	for e := range logdriver.All(raw) {
		// Where the log has the beginning, a later frame must end the line.
		if e.Partial || f.begun(e) {
			was |= cutOf(e)
		} else {
			was &^= cutOf(e)
		}
	}
	return was
}

// begun says whether the log has the beginning of the line that e goes on with.
func (f frames) begun(e *logdriver.Entry) bool {
	return logdriver.Open(f.st.rec.open)&logdriver.Of(e.Source) != 0
}

func (f frames) resume(was lineState, raw []byte) (drop, take int) {
	if was == 0 {
		return 0, len(raw)
	}
	e, used, ok := logdriver.First(raw)
	if ok && isCut(was, &e) && (e.Partial || !f.begun(&e)) {
		return used, 0
	}
	return 0, used
}

func (frames) skip(raw []byte, entries int) (n int) {
	for _, end := range logdriver.All(raw) {
		if entries == 0 {
			return n
		}
		n = end
		entries--
	}
	return n
}

func (frames) output(raw []byte) (n int) {
	for e := range logdriver.All(raw) {
		n += len(e.Line)
		if !e.Partial {
			n++
		}
	}
	return n
}

func (frames) lost(was lineState, raw []byte) int {
	if e, _, ok := logdriver.First(raw); ok && isCut(was, &e) {
		return len(e.Line)
	}
	return 0
}
