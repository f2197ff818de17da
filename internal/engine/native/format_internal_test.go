package native

import (
	"testing"

	"gantry/internal/shape"
)

func TestFormatsOfTheEnginesRecords(t *testing.T) {
	shape.Check(t, map[string]any{"sandbox": new(sandboxRecord), "container": new(containerRecord)})
}
