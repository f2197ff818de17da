package worker

import "time"

// pace spaces the rounds in which a stream is read that writes one line soon after the other: a round costs more than a
// line, and lines that are read together share it. What comes after a silence is read at once.
type pace struct {
	ended time.Time // the last round
	row   int       // rounds that began soon after the one before; negative for as many that may
	waits bool      // the round that comes was put off
}

const (
	// gather is how long after the last round another one is soon, and how long after it the next begins at the
	// earliest, in a row of more than rowOfLines.
	gather     = time.Millisecond
	rowOfLines = 16
	// plenty is how many bytes a round that was put off may bring, at most, until the next rowOfPlenty are not put off:
	// one who writes as much would wait for the pipe.
	plenty      = 16 << 10
	rowOfPlenty = 1000
)

// clock is the time by which rounds are spaced. The zero value is the machine's.
type clock struct {
	now   func() time.Time
	pause func(d time.Duration)
}

func (c *clock) time() time.Time {
	if c.now == nil {
		return time.Now()
	}
	return c.now()
}

func (c *clock) wait(d time.Duration) {
	if c.pause == nil {
		<-time.After(d)
		return
	}
	c.pause(d)
}

// next says for how long a round that could begin now is put off.
func (p *pace) next(now time.Time) time.Duration {
	since := now.Sub(p.ended)
	if p.row++; since >= gather {
		p.row = min(p.row, 0)
	}
	if p.waits = p.row > rowOfLines; !p.waits {
		return 0
	}
	return gather - since
}

// end takes note of a round that has brought n bytes.
func (p *pace) end(n int, now time.Time) {
	p.ended = now
	if p.waits && n > plenty {
		p.row = -rowOfPlenty
	}
	p.waits = false
}
