// Package arch reads the floor table of ARCHITECTURE.md. Its tests hold the code to it: what the
// document says about imports is what the compiler sees. Only tests use it.
package arch

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Floors maps a package, named as below internal/, to its floor.
type Floors map[string]int

// ReadFloors reads the table whose header's first cell is "floor": a floor's number in the first
// column and its packages, separated by commas, in the second.
func ReadFloors(markdown io.Reader) (Floors, error) {
	floors := Floors{}
	inTable := false
	sc := bufio.NewScanner(markdown)
	for sc.Scan() {
		cells := row(sc.Text())
		switch {
		case len(cells) < 2:
			inTable = false
		case cells[0] == "floor":
			inTable = true
		case !inTable || strings.HasPrefix(cells[0], "--"):
		default:
			if err := floors.add(cells[0], cells[1]); err != nil {
				return nil, err
			}
		}
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("read floor table: %w", err)
	}
	if len(floors) == 0 {
		return nil, fmt.Errorf("no table with a floor column")
	}
	return floors, nil
}

func (f Floors) add(number, packages string) error {
	floor, err := strconv.Atoi(number)
	if err != nil {
		return fmt.Errorf("floor %q: %w", number, err)
	}
	for _, name := range strings.Split(packages, ",") {
		name = strings.TrimSpace(name)
		if _, twice := f[name]; twice {
			return fmt.Errorf("package %s stands on two floors", name)
		}
		f[name] = floor
	}
	return nil
}

// row splits a table row into its cells; nil when the line is none.
func row(line string) []string {
	line = strings.TrimSpace(line)
	if !strings.HasPrefix(line, "|") {
		return nil
	}
	cells := strings.Split(strings.Trim(line, "|"), "|")
	for i := range cells {
		cells[i] = strings.TrimSpace(cells[i])
	}
	return cells
}
