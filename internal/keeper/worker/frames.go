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
	if e, _, ok := logdriver.Next(raw); ok && isCut(was, &e) {
		raw = logdriver.Append(nil, &logdriver.Entry{Source: e.Source, Time: e.Time})
	}
	return logdriver.Format(dst, raw)
}

func isCut(was lineState, e *logdriver.Entry) bool { return was&cutOf(e) != 0 }

func cutOf(e *logdriver.Entry) lineState { return lineState(logdriver.Of(e.Source)) }

// The rest of a frame that its writer did not finish is no entry.
func (frames) flushes() bool { return false }

func (frames) kept(was lineState, raw []byte) lineState {
	eachFrame(raw, func(e *logdriver.Entry, _ int) bool {
		if !e.Partial {
			was &^= cutOf(e)
		}
		return true
	})
	return was
}

func (f frames) dropped(was lineState, raw []byte) lineState {
	eachFrame(raw, func(e *logdriver.Entry, _ int) bool {
		// Where the log has the beginning, a later frame must end the line.
		if e.Partial || f.begun(e) {
			was |= cutOf(e)
		} else {
			was &^= cutOf(e)
		}
		return true
	})
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
	e, used, ok := logdriver.Next(raw)
	if ok && isCut(was, &e) && (e.Partial || !f.begun(&e)) {
		return used, 0
	}
	return 0, used
}

func (frames) skip(raw []byte, entries int) (n int) {
	eachFrame(raw, func(_ *logdriver.Entry, end int) bool {
		if entries--; entries >= 0 {
			n = end
		}
		return entries > 0
	})
	return n
}

func (frames) output(raw []byte) (n int) {
	eachFrame(raw, func(e *logdriver.Entry, _ int) bool {
		n += len(e.Line)
		if !e.Partial {
			n++
		}
		return true
	})
	return n
}

func (frames) lost(was lineState, raw []byte) int {
	if e, _, ok := logdriver.Next(raw); ok && isCut(was, &e) {
		return len(e.Line)
	}
	return 0
}

// eachFrame visits the frames of raw, and where each ends, until visit says no.
func eachFrame(raw []byte, visit func(e *logdriver.Entry, end int) bool) {
	for n := 0; n < len(raw); {
		e, used, ok := logdriver.Next(raw[n:])
		n += used
		if used == 0 || ok && !visit(&e, n) {
			return
		}
	}
}
