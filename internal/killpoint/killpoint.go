// Package killpoint lets a fault test end a real process at a named point: the server and the keeper
// call Reached at every moment after which a crash must lose nothing, and where nobody asked for
// faults that is a call that does nothing.
//
// A test names a directory of its own in the environment of the process. In it
//
//	trace   if it is there, every point that is reached is added to it, a line "process TAB point"
//	armed   if it is there, holds an Armed: the process of that name that reaches the point for the
//	        count-th time since removes the file, kills the others, and then itself
//	armed.1 if it is there, takes the place of armed when that is removed, armed.2 that of armed.1 …
//
// so that points are learnt from a run and killed at in the next ones without a restart between.
package killpoint

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// Env names the directory. It is for fault tests; a process without it has no points.
const Env = "GANTRY_KILL_POINTS"

// The names of the files in the directory.
const (
	TraceFile = "trace"
	ArmedFile = "armed"
)

// Points are those of one process. A nil Points does nothing.
type Points struct {
	dir     string
	process string

	mu sync.Mutex // held while a point is looked at, so that occurrences are counted one by one
}

// FromEnv returns the points of the process of that name, or nil when the environment names no
// directory.
func FromEnv(process string) *Points {
	dir := os.Getenv(Env)
	if !filepath.IsAbs(dir) {
		return nil
	}
	return &Points{dir: dir, process: process}
}

// Active says whether somebody asked for faults.
func (p *Points) Active() bool { return p != nil }

// Reached says that the process is at the point. It does not return if the process is to end there.
func (p *Points) Reached(point string) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.trace(point)
	a, err := readArmed(filepath.Join(p.dir, ArmedFile))
	if err != nil || a.Process != p.process || a.Point != point {
		return
	}
	if a.Count--; a.Count > 0 {
		_ = Arm(p.dir, a) // the directory is the test's; when it is gone so is the test
		return
	}
	disarm(p.dir)
	for _, pid := range a.Others {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	if !a.Spare {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // the signal is on its way to this thread
	}
}

func (p *Points) trace(point string) {
	f, err := os.OpenFile(filepath.Join(p.dir, TraceFile), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return
	}
	defer func() { _ = f.Close() }()
	_, _ = f.WriteString(p.process + "\t" + point + "\n")
}

// Armed is a kill that waits for its point.
type Armed struct {
	Process string
	Point   string
	Count   int   // the occurrence that is meant, from 1
	Others  []int // processes that are killed with it, just before
	Spare   bool  // only the others are killed
}

// disarm removes what has fired; what was armed to follow takes its place.
func disarm(dir string) {
	_ = os.Remove(armedFile(dir, 0))
	for i := 1; os.Rename(armedFile(dir, i), armedFile(dir, i-1)) == nil; i++ {
	}
}

// armedFile is the file of the kill after i others.
func armedFile(dir string, i int) string {
	if i == 0 {
		return filepath.Join(dir, ArmedFile)
	}
	return filepath.Join(dir, ArmedFile+"."+strconv.Itoa(i))
}

// Arm has the process end at the point, and after each of these kills arms the next. Dir is the
// directory that Env names.
func Arm(dir string, first Armed, next ...Armed) error {
	for i, a := range next {
		if err := arm(armedFile(dir, i+1), a); err != nil {
			return err
		}
	}
	return arm(armedFile(dir, 0), first)
}

// Disarm takes back every kill that has not fired.
func Disarm(dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, ArmedFile+"*"))
	for _, f := range files {
		err = errors.Join(err, os.Remove(f))
	}
	return err
}

func arm(path string, a Armed) error {
	words := []string{a.Process, a.Point, strconv.Itoa(a.Count), strconv.FormatBool(a.Spare)}
	for _, pid := range a.Others {
		words = append(words, strconv.Itoa(pid))
	}
	if err := os.WriteFile(path+".new", []byte(strings.Join(words, "\t")), 0o600); err != nil {
		return fmt.Errorf("arm a kill point: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("arm a kill point: %w", err)
	}
	return nil
}

func readArmed(path string) (Armed, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Armed{}, err
	}
	words := strings.Split(string(data), "\t")
	if len(words) < 4 {
		return Armed{}, errors.New("not armed")
	}
	a := Armed{Process: words[0], Point: words[1], Spare: words[3] == "true"}
	a.Count, err = strconv.Atoi(words[2])
	for _, w := range words[4:] {
		pid, bad := strconv.Atoi(w)
		a.Others, err = append(a.Others, pid), errors.Join(err, bad)
	}
	return a, err
}
