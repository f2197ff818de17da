package faults_test

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"gantry/internal/labimage"
	"gantry/test/node"
)

// programFile arms a program: "program command when pid…".
const programFile = "program"

// When a program is killed: before it did anything, when it has done all and not answered yet, or
// after so many seconds. The last kills the server or the worker and lets the program go on.
const (
	whenBefore = "before"
	whenAfter  = "after"
	whenBegun  = "begun"
)

// wrapper stands where a program is expected. Mostly it is that program; once, when it is armed, it
// is killed, or kills others, at the moment that the file names.
const wrapper = `#!/bin/sh
armed=%[1]q name=%[2]q real=%[3]q
if [ -n "$CNI_COMMAND" ]; then command=$CNI_COMMAND; else
  for command in "$@"; do
    case $command in create|start|exec|delete|pause|resume|checkpoint|restore) break;; esac
  done
fi
[ -f "$armed" ] || exec "$real" "$@"
{ read -r program when_command when pids < "$armed"; } 2>/dev/null # it may just have gone
[ "$program $when_command" = "$name $command" ] || exec "$real" "$@"
rm "$armed"
case $when in
before) ;;
after) if [ -n "$CNI_COMMAND" ]; then "$real" "$@" >/dev/null; else "$real" "$@"; fi;; # a container's streams stay
begun) kill -9 $pids 2>/dev/null; exec "$real" "$@";;
hang) exec sleep 1000001;;
*)
  exec 3<&0
  "$real" "$@" <&3 &
  sleep "$when"
  kill -9 $! 2>/dev/null;;
esac
kill -9 $$
`

// ociRuntime is the one that pods run on.
var ociRuntime = cmp.Or(os.Getenv("GANTRY_FAULTS_RUNTIME"), "crun")

// handlerDirect is the handler whose runtime is crun without a wrapper before it.
const handlerDirect = "direct"

// hungCommand is what a program is that hangs.
const hungCommand = "sleep 1000001"

// program is one that is wrapped, with the commands of it that change something.
type program struct {
	name     string
	commands map[string][]string // by the call that runs them
}

// realRuntime is the runtime behind the wrapper; crun's CRIU is played.
func realRuntime(t *testing.T) string {
	t.Helper()
	if ociRuntime == "crun" {
		path, _ := node.PlayCRIU(t)
		return path
	}
	path, err := exec.LookPath(ociRuntime)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func (w *world) wrapPrograms(t *testing.T) (flags []string) {
	t.Helper()
	path := realRuntime(t)
	w.programs = []program{{ociRuntime, map[string][]string{
		"CreateContainer": {"create"}, "CreateContainer, terminal": {"create"}, "StartContainer": {"start"}, "ExecSync": {"exec"},
		"RemoveContainer": {"delete"}, "RemovePodSandbox": {"delete"}, "RunPodSandbox, one PID namespace": {"create", "start"},
		"CheckpointContainer": {"pause", "checkpoint", "resume"}, "CheckpointPod": {"pause", "checkpoint", "resume"},
		"StartContainer of a checkpoint": {"restore"},
	}}}
	flags = []string{"--runtime", ociRuntime + "=" + w.wrap(t, ociRuntime, path)}
	if ociRuntime == "crun" {
		direct, err := exec.LookPath("crun")
		if err != nil {
			t.Fatal(err)
		}
		flags = append(flags, "--runtime", handlerDirect+"="+direct)
	}
	if w.network == "cni" {
		for _, plugin := range []string{"bridge", "host-local", "portmap"} {
			w.wrap(t, "stage-"+plugin, filepath.Join("/usr/lib/cni", plugin))
			w.programs = append(w.programs, program{"stage-" + plugin, map[string][]string{
				"RunPodSandbox": {"ADD"}, "StopPodSandbox": {"DEL"}, "RemovePodSandbox": {"DEL"},
			}})
		}
		flags = append(flags, "--cni-bin-dir", w.dir)
	}
	return flags
}

func (w *world) wrap(t *testing.T, name, wrapped string) string {
	t.Helper()
	path := filepath.Join(w.dir, name)
	script := fmt.Sprintf(wrapper, filepath.Join(w.dir, programFile), name, wrapped)
	if err := os.WriteFile(path, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// stageNetwork is the usual configuration with the wrapped plugins in it.
func (w *world) stageNetwork(t *testing.T, dir string) {
	t.Helper()
	conf := node.BridgeConf(w.n.Leases)
	for _, plugin := range []string{"bridge", "host-local", "portmap"} {
		conf = strings.ReplaceAll(conf, `"type": "`+plugin+`"`, `"type": "stage-`+plugin+`"`)
	}
	node.WriteCNI(t, dir, conf)
}

// programFaults are the cases of the programs that a call runs.
func (w *world) programFaults(c *call) []*fault {
	var all []*fault
	for _, p := range w.programs {
		for _, command := range p.commands[c.name] {
			at := point{process: p.name, name: command, count: 1}
			for _, when := range []string{whenBefore, "0.001", "0.003", "0.006", "0.012", whenAfter} {
				all = append(all, &fault{call: c, point: at, victim: itself, when: when})
			}
			all = append(all, &fault{call: c, point: at, victim: server, when: whenBegun})
			if p.name == ociRuntime {
				all = append(all, &fault{call: c, point: at, victim: worker, when: whenBegun},
					&fault{call: c, point: at, victim: both, when: whenBegun})
			}
		}
	}
	return all
}

func (w *world) armProgram(f *fault) {
	w.t.Helper()
	_, workerPid := w.n.Keeper()
	pids := map[string][]int{server: {w.n.Pid()}, worker: {workerPid}, both: {workerPid, w.n.Pid()}}[f.victim]
	if slices.Contains(pids, 0) { // which would be whoever kills
		w.t.Fatal("there is no worker")
	}
	line := fmt.Sprintln(f.point.process, f.point.name, f.when, strings.Trim(fmt.Sprint(pids), "[]"))
	if err := os.WriteFile(filepath.Join(w.dir, programFile), []byte(line), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// pushed is an image of several layers that no container uses.
var pushed = sync.OnceValues(func() (string, error) {
	s, err := labimage.Serve(labimage.Config{})
	if err != nil {
		return "", err
	}
	img, err := labimage.Build(v1.Config{},
		[]labimage.Entry{labimage.Dir("etc", 0o755), labimage.File("etc/one", 0o644, strings.Repeat("1", 100_000))},
		[]labimage.Entry{labimage.File("etc/two", 0o644, "2"), labimage.Whiteout("etc/one")},
	)
	if err != nil {
		return "", err
	}
	return s.Push("lab/layered:1", img)
})

func layered(t testing.TB) string {
	t.Helper()
	ref, err := pushed()
	if err != nil {
		t.Fatal(err)
	}
	return ref
}
