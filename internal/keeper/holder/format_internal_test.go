package holder

import (
	"testing"

	"gantry/internal/shape"
)

func TestFormatOfWhatAnUpgradeHandsOver(t *testing.T) {
	shape.Check(t, map[string]any{"resumed": new(resumed)})
}
