package keeper_test

import (
	"path/filepath"
	"strings"
	"testing"

	"gantry/internal/crilog"
	"gantry/internal/keeper"
)

func TestEveryRuntime(t *testing.T) {
	for _, name := range []string{"crun", "runc"} {
		for mode, tty := range map[string]bool{"pipes": false, "terminal": true} {
			t.Run(name+" with "+mode, func(t *testing.T) {
				b := newBench(t)
				c := container{script: "echo hello; " + waitAndExit}
				c.TTY = tty
				c.Runtime = keeper.Runtime{Path: "/usr/bin/" + name, Args: []string{"--root", filepath.Join(b.crun, name)}}
				req := b.run("c", c)
				s, output := b.exec("c", "echo from exec; exit 3", nil)
				if e, err := s.Wait(b.context()); err != nil || e.Code != 3 {
					t.Errorf("exec: %+v, %v", e, err)
				}
				if out, _ := output(); out != "from exec\n" {
					t.Errorf("exec's output %q", out)
				}
				b.kill(b.worker)
				b.touch("go")
				if e := b.exit("c"); e.Code != 9 {
					t.Errorf("exit %+v, want 9", e)
				}
				if out, _, _ := logged(t, req.LogPath, crilog.Stdout); strings.ReplaceAll(out, "\r", "") != "hello\nup\ndown\n" {
					t.Errorf("log %q", out)
				}
				if err := b.Delete(b.context(), "c"); err != nil {
					t.Errorf("delete: %v", err)
				}
				if left, _ := filepath.Glob(b.crun + "/*/c"); len(left) > 0 {
					t.Errorf("left behind: %v", left)
				}

				c.Runtime.Path = "/usr/bin/" + name
				c.script, c.args = "", []string{"/no/such/command"}
				_, err := b.Create(b.context(), b.spec("bad", c))
				if err == nil {
					err = b.Start(b.context(), "bad")
				}
				if err == nil || !strings.Contains(err.Error(), "/no/such/command") {
					t.Errorf("a command that is not there: %v", err)
				}
				t.Log(err)
			})
		}
	}
}
