package node

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// criuScript is a crun whose checkpoint and restore are played: a checkpoint writes files where CRIU
// would write the processes, a restore begins the container's process anew. All else, freezing too, is
// crun's. A file "NAME MODE" says what goes wrong in the command of that name: fail, hang, die, or
// mute, to die when all is done.
const criuScript = `#!/bin/sh
real=%[1]q fault=%[2]q
global= command= images= work= bundle= pidfile= console=
for arg in "$@"; do
  case $arg in --version|features|checkpoint|restore) command=$arg; break;; create|start|exec|delete|state|kill|update|pause|resume) break;; esac
done
case $command in
--version) exec "$real" --version | sed 's/^+.*/& +CRIU/';;
features) exit 1;;
'') exec "$real" "$@";;
esac
while [ "$1" != "$command" ]; do global="$global $1"; shift; done
shift
while [ $# -gt 1 ]; do
  case $1 in
  --image-path) images=$2; shift 2;;
  --work-path) work=$2; shift 2;;
  --bundle) bundle=$2; shift 2;;
  --pid-file) pidfile=$2; shift 2;;
  --console-socket) console="--console-socket $2"; shift 2;;
  *) shift;;
  esac
done
mode=
if [ -f "$fault" ]; then
  read -r name mode < "$fault"
  [ "$name" = "$command" ] || mode=
fi
begun() { echo "(00.000001) $1" >> "$work/$([ $command = restore ] && echo restore || echo dump).log"; }
case $mode in
fail) begun "Error (criu/cr-dump.c:1): cannot"; echo "criu failed" >&2; exit 1;;
hang) begun "began"; exec sleep 1000001;;
die) begun "began"; kill -9 $$;;
esac
case $command in
checkpoint)
  "$real" $global state "$1" | grep -Eq '"status": *"(running|paused)"' || exit 1
  begun "Dumping finished successfully"
  echo core > "$images/core-1.img"
  echo pages > "$images/pages-1.img";;
restore)
  [ -f "$images/core-1.img" ] || { echo "no images" >&2; exit 1; }
  # What the kill of a crun does not end, as CRIU; start does not speak into the container's streams.
  sh -c '"$0" $1 create --bundle "$2" --pid-file "$3" $4 "$5" && "$0" $1 start "$5" >/dev/null 2>&1' "$real" "$global" "$bundle" "$pidfile" "$console" "$1" || exit;;
esac
[ "$mode" != mute ] || kill -9 $$
`

// PlayCRIU puts a program criu on PATH and returns the path of a crun that plays checkpoints, and of the
// file that says what goes wrong.
func PlayCRIU(t *testing.T) (crun, fault string) {
	t.Helper()
	genuine, err := exec.LookPath("crun")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	bin := filepath.Join(dir, "bin")
	crun, fault = filepath.Join(dir, "crun"), filepath.Join(dir, "fault")
	if err := os.Mkdir(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	for path, script := range map[string]string{filepath.Join(bin, "criu"): "#!/bin/sh\n", crun: fmt.Sprintf(criuScript, genuine, fault)} {
		if err := os.WriteFile(path, []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	return crun, fault
}
