package killpoint_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"gantry/internal/killpoint"
)

// TestMain is also the process that is killed: with the points in its environment it reaches three.
func TestMain(m *testing.M) {
	if p := killpoint.FromEnv("child"); p.Active() {
		for range 3 {
			p.Reached("step")
		}
		return
	}
	m.Run()
}

func TestProcessEndsAtItsPoint(t *testing.T) {
	tests := map[string]struct {
		armed  *killpoint.Armed
		killed bool
		trace  int
	}{
		"not armed":                        {nil, false, 3},
		"the first time":                   {&killpoint.Armed{Process: "child", Point: "step", Count: 1}, true, 1},
		"the third time":                   {&killpoint.Armed{Process: "child", Point: "step", Count: 3}, true, 3},
		"more often than it is reached":    {&killpoint.Armed{Process: "child", Point: "step", Count: 4}, false, 3},
		"another point":                    {&killpoint.Armed{Process: "child", Point: "other", Count: 1}, false, 3},
		"another process":                  {&killpoint.Armed{Process: "parent", Point: "step", Count: 1}, false, 3},
		"only the others, of whom none is": {&killpoint.Armed{Process: "child", Point: "step", Count: 1, Spare: true}, false, 3},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			trace := filepath.Join(dir, killpoint.TraceFile)
			if err := os.WriteFile(trace, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if tt.armed != nil {
				if err := killpoint.Arm(dir, *tt.armed); err != nil {
					t.Fatal(err)
				}
			}
			cmd := exec.CommandContext(t.Context(), os.Args[0])
			cmd.Env = append(os.Environ(), killpoint.Env+"="+dir)
			err := cmd.Run()
			if killed := wasKilled(err); killed != tt.killed {
				t.Errorf("killed: %v, %v", killed, err)
			}
			data, err := os.ReadFile(trace)
			if got := strings.Count(string(data), "child\tstep\n"); got != tt.trace {
				t.Errorf("trace %q, %v", data, err)
			}
			if tt.killed {
				if _, err := os.Stat(filepath.Join(dir, killpoint.ArmedFile)); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("its successor would be killed too: %v", err)
				}
			}
		})
	}
}

func TestKillsFollowEachOther(t *testing.T) {
	dir := t.TempDir()
	kill := killpoint.Armed{Process: "child", Point: "step", Count: 1}
	if err := killpoint.Arm(dir, kill, kill, kill); err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{true, true, true, false} {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), killpoint.Env+"="+dir)
		if killed := wasKilled(cmd.Run()); killed != want {
			t.Errorf("run %d: killed: %v, want %v", i, killed, want)
		}
	}
	if err := killpoint.Arm(dir, kill, kill); err != nil {
		t.Fatal(err)
	}
	if err := killpoint.Disarm(dir); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left armed: %v", left)
	}
}

func TestOthersAreKilledWithIt(t *testing.T) {
	other := exec.CommandContext(t.Context(), "cat")
	stdin, err := other.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	if err = other.Start(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err = killpoint.Arm(dir, killpoint.Armed{Process: "child", Point: "step", Count: 1, Others: []int{other.Process.Pid}}); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), killpoint.Env+"="+dir)
	if err = cmd.Run(); !wasKilled(err) {
		t.Errorf("the process itself: %v", err)
	}
	if err = other.Wait(); !wasKilled(err) {
		t.Errorf("the other: %v", err)
	}
}

func TestNobodyAskedForFaults(t *testing.T) {
	for _, value := range []string{"", "relative"} {
		t.Setenv(killpoint.Env, value)
		p := killpoint.FromEnv("child")
		if p.Active() {
			t.Errorf("%q makes points", value)
		}
		p.Reached("step")
	}
}

func wasKilled(err error) bool {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return false
	}
	status, ok := exit.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGKILL
}
