package keeper

import "gantry/internal/pod"

// BoundsOf are the bounds of a container's log as the keeper takes them; nil is none.
func BoundsOf(b *pod.LogBounds) LogBounds {
	if b == nil {
		return LogBounds{}
	}
	return LogBounds{Rate: b.Rate, Size: b.Size, FullWait: b.FullWait}
}
