package cli

import "io"

// What the tests look at from inside.
var (
	Bar          = bar
	Size         = size
	Screen       = screen
	CheckPorts   = checkPorts
	RemoveDirsOf = removeDirectoriesOf
)

// NewBars draws on w, which is width characters wide.
func NewBars(w io.Writer, width int) *bars { return &bars{w: w, width: func() int { return width }} }

// Draw is draw.
var Draw = (*bars).draw

// NewDetacher reads from in and calls leave at the detach keys.
func NewDetacher(in io.Reader, leave func()) io.Reader { return &detacher{in: in, leave: leave} }

// Marker is the file that makes a directory ours.
const Marker = marker
