package crash_test

import (
	"fmt"
	"os"
	"strings"
	"time"
)

// readLog reads a CRI log, "STAMP STREAM TAG CONTENT" a line, joins the pieces of long lines, and
// checks every stamp and tag on the way. Terminals write lines that end with CR LF.
func readLog(path string) ([]string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var lines []string
	var piece strings.Builder
	number := 0
	for record := range strings.Lines(string(data)) {
		number++
		text, whole := strings.CutSuffix(record, "\n")
		fields := strings.SplitN(text, " ", 4)
		if !whole || len(fields) != 4 {
			return nil, fmt.Errorf("line %d is torn: %q", number, record)
		}
		if _, err = time.Parse(time.RFC3339Nano, fields[0]); err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
		if fields[1] != "stdout" {
			return nil, fmt.Errorf("line %d: stream %q", number, fields[1])
		}
		piece.WriteString(fields[3])
		switch fields[2] {
		case "P":
		case "F":
			lines = append(lines, strings.TrimSuffix(piece.String(), "\r"))
			piece.Reset()
		default:
			return nil, fmt.Errorf("line %d: tag %q", number, fields[2])
		}
	}
	if piece.Len() > 0 {
		return nil, fmt.Errorf("the last line has no end: %q", piece.String())
	}
	return lines, nil
}
