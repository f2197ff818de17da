package native_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"gantry/internal/engine/native"
	"gantry/internal/pod"
)

const cdiFile = `{
  "cdiVersion": "0.6.0", "kind": "vendor.example/card",
  "containerEdits": {"env": ["CARDS=yes"]},
  "devices": [
    {"name": "one", "containerEdits": {
      "env": ["CARD=one"],
      "deviceNodes": [{"path": "/dev/card1", "hostPath": "/dev/zero"}],
      "mounts": [{"hostPath": "DIR", "containerPath": "/driver", "options": ["ro", "bind"]}]
    }},
    {"name": "two", "containerEdits": {"env": ["OTHER=two"]}}
  ]
}`

// withCDI is a pod on an engine that reads CDI files from dir.
func withCDI(t *testing.T, runtime, dir string) *testPod {
	t.Helper()
	s := newStation(t, runtime)
	s.opts.CDISpecDirs = []string{dir}
	var err error
	if s.Engine, err = native.New(s.opts); err != nil {
		t.Fatal(err)
	}
	return s.newPod(t)
}

func TestCDIDevices(t *testing.T) {
	for _, runtime := range []string{"crun", "runc"} {
		t.Run(runtime, func(t *testing.T) {
			dir := t.TempDir()
			p := withCDI(t, runtime, dir)
			// Files may come and change while the server runs.
			if err := os.WriteFile(filepath.Join(dir, "card.json"), []byte(strings.ReplaceAll(cdiFile, "DIR", dir)), 0o600); err != nil {
				t.Fatal(err)
			}
			text, exit := p.run(`echo $CARDS $CARD $OTHER; head -c 5 /dev/card1 | wc -c; ls /driver`, func(c *pod.ContainerSpec) {
				c.CDIDevices = []string{"vendor.example/card=one"}
			})
			if want := "yes one\n5\ncard.json"; text != want || exit.Code != 0 {
				t.Errorf("exit %+v, printed\n%s\nwant\n%s", exit, text, want)
			}
		})
	}
}

func TestCDIDevicesThatAreUnknownAreNamed(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "card.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := withCDI(t, "crun", dir)
	req := p.request("true", func(c *pod.ContainerSpec) { c.CDIDevices = []string{"vendor.example/card=three"} })
	_, err := p.CreateContainer(t.Context(), req)
	if !errdefs.IsInvalidArgument(err) {
		t.Fatalf("CreateContainer: %v", err)
	}
	for _, want := range []string{"vendor.example/card=three", dir, "card.json"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not name %s: %v", want, err)
		}
	}
}
