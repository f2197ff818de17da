package store

import (
	"testing"

	"gantry/internal/shape"
)

func TestFormatsOfTheJournal(t *testing.T) {
	shape.Check(t, map[string]any{"record": new(record)})
}
