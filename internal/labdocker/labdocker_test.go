package labdocker_test

import (
	"strings"
	"testing"

	"gantry/internal/lab"
	"gantry/internal/labdocker"
)

func TestMain(m *testing.M) { lab.Main(m) }

func TestContainersOutliveADaemonWithLiveRestore(t *testing.T) {
	for _, v := range labdocker.Versions() {
		t.Run(string(v), func(t *testing.T) {
			d := labdocker.Start(t, labdocker.Options{Version: v, LiveRestore: true})
			image := d.Busybox()
			id := strings.TrimSpace(d.Docker("run", "-d", "--network", "none", image, "sleep", "1000"))
			pid := d.Docker("inspect", "-f", "{{.State.Pid}}", id)
			d.Kill()
			d.Restart()
			if now := d.Docker("inspect", "-f", "{{.State.Pid}}", id); now != pid {
				t.Errorf("container's pid was %s, is %s\n%s", pid, now, d.LogTail())
			}
			d.Stop()
			d.Restart()
			if now := d.Docker("inspect", "-f", "{{.State.Running}} {{.State.Pid}}", id); now != "true "+pid {
				t.Errorf("container's pid was %s, now %s\n%s", pid, now, d.LogTail())
			}
		})
	}
}

func TestNetworkOfTheDaemon(t *testing.T) {
	d := labdocker.Start(t, labdocker.Options{Network: true})
	if out := d.Docker("run", "--rm", d.Busybox(), "ip", "route"); !strings.Contains(out, "default via") {
		t.Errorf("routes of a container on docker0: %s", out)
	}
}
