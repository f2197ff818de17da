package worker

import "time"

// within waits for done, for as long as d at most, and says whether it came. It counts the moments in which this process
// looked at the clock, not the time that passed: a machine that stood still, or gave nobody his turn, is no reason to give up.
func within(done <-chan struct{}, d time.Duration) bool {
	const looks = 20
	tick := time.NewTicker(d / looks) // drops what nobody takes
	defer tick.Stop()
	return countdown(done, tick.C, looks)
}

func countdown(done <-chan struct{}, tick <-chan time.Time, looks int) bool {
	for range looks {
		select {
		case <-done:
			return true
		case <-tick:
		}
	}
	select {
	case <-done:
		return true
	default:
		return false
	}
}
