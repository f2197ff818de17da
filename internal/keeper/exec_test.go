package keeper_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"gantry/internal/crilog"
	"gantry/internal/keeper"
)

// idle runs until it is told to end.
const idle = `trap "exit 0" TERM; while :; do sleep 0.02; done`

func ociProcess(tty bool, args ...string) []byte {
	data, _ := json.Marshal(map[string]any{
		"args": args, "cwd": "/", "env": []string{"PATH=/bin"}, "terminal": tty,
		"user": map[string]int{"uid": 0, "gid": 0},
	})
	return data
}

// pipe returns a pipe whose write end is closed by the function.
func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close(); _ = w.Close() })
	return r, w
}

// exec runs a script in container key and returns its session and its output, read to the end.
func (b *bench) exec(key, script string, stdin *os.File) (*keeper.Session, func() (out, err string)) {
	b.t.Helper()
	t := b.t.(*testing.T)
	outR, outW := pipe(t)
	errR, errW := pipe(t)
	s, err := b.Exec(b.context(), &keeper.Exec{
		Key: key, Process: ociProcess(false, "sh", "-c", script), Stdin: stdin, Stdout: outW, Stderr: errW,
	})
	if err != nil {
		t.Fatalf("exec: %v", err)
	}
	_, _ = outW.Close(), errW.Close()
	return s, func() (string, string) {
		out, _ := io.ReadAll(outR)
		errs, _ := io.ReadAll(errR)
		return string(out), string(errs)
	}
}

func TestExec(t *testing.T) {
	b := newBench(t)
	b.run("c", container{script: idle})
	stdin, w := pipe(t)
	s, output := b.exec("c", "cat; echo problem >&2; exit 12", stdin)
	if _, err := io.WriteString(w, "hello"); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	_ = stdin.Close()
	if e, err := s.Wait(b.context()); err != nil || e.Code != 12 || s.Pid == 0 {
		t.Errorf("exit %+v, %v; want 12", e, err)
	}
	if out, errs := output(); out != "hello" || errs != "problem\n" {
		t.Errorf("output %q, %q", out, errs)
	}
	if log, _, _ := logged(t, b.log, crilog.Stdout); log != "" {
		t.Errorf("the exec's output is in the container's log: %q", log)
	}
}

func TestExecThroughWorkerDeath(t *testing.T) {
	b := newBench(t)
	b.run("c", container{script: idle})
	s, output := b.exec("c", "while ! [ -e /shared/go ]; do sleep 0.01; done; echo done; exit 13", nil)
	b.kill(b.worker)
	b.touch("go")
	if e, err := s.Wait(b.context()); err != nil || e.Code != 13 {
		t.Errorf("exit %+v, %v; want 13", e, err)
	}
	if out, _ := output(); out != "done\n" {
		t.Errorf("output %q", out)
	}
}

func TestExecIsKilledWithItsChildren(t *testing.T) {
	b := newBench(t)
	b.run("c", container{script: idle})
	s, output := b.exec("c", "sleep 1001 & sleep 1002", nil)
	b.eventually("children", func() bool { return processRuns("sleep", "1001") && processRuns("sleep", "1002") })
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	if e, err := s.Wait(b.context()); err != nil || e.Code != 137 {
		t.Errorf("exit %+v, %v; want 137", e, err)
	}
	output() // ends when the children have
	if err := s.Kill(); err != nil {
		t.Errorf("second kill: %v", err)
	}
	if s := b.stateOf("c"); s.Phase != "running" {
		t.Errorf("container %+v", s)
	}
}

// resize sets a terminal's size by its master.
func resize(t *testing.T, master *os.File, rows, columns uint16) {
	t.Helper()
	rc, err := master.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var ioctlErr error
	err = rc.Control(func(fd uintptr) {
		ioctlErr = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns})
	})
	if err = errors.Join(err, ioctlErr); err != nil {
		t.Fatal(err)
	}
}

func TestExecOnATerminal(t *testing.T) {
	b := newBench(t)
	b.run("c", container{script: idle})
	s, err := b.Exec(b.context(), &keeper.Exec{Key: "c", TTY: true, Process: ociProcess(true, "sh", "-c", "read x; stty size; exit 14")})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Console.Close() }()
	resize(t, s.Console, 33, 111)
	if _, err = io.WriteString(s.Console, "go\n"); err != nil {
		t.Fatal(err)
	}
	out, _ := io.ReadAll(s.Console) // ends with EIO when the terminal's last process has
	if e, err := s.Wait(b.context()); err != nil || e.Code != 14 {
		t.Errorf("exit %+v, %v; want 14", e, err)
	}
	if !strings.Contains(string(out), "33 111") {
		t.Errorf("output %q, want the size 33 111", out)
	}
}

func TestExecErrors(t *testing.T) {
	b := newBench(t)
	ctx := b.context()
	req := b.spec("c", container{script: "exit 0"})
	if _, err := b.Create(ctx, req); err != nil {
		t.Fatal(err)
	}
	run := func(key string) error {
		_, err := b.Exec(ctx, &keeper.Exec{Key: key, Process: ociProcess(false, "/no/such/command")})
		return err
	}
	if err := run("absent"); !errdefs.IsNotFound(err) {
		t.Errorf("exec in an absent container: %v", err)
	}
	if err := run("c"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("exec in a container that was not started: %v", err)
	}
	if err := b.Start(ctx, "c"); err != nil {
		t.Fatal(err)
	}
	b.exit("c")
	if err := run("c"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("exec in a container that has ended: %v", err)
	}
	b.run("runs", container{script: idle})
	if err := run("runs"); err == nil || !strings.Contains(err.Error(), "/no/such/command") {
		t.Errorf("exec of a command that is not there: %v", err)
	}
}

func TestAttach(t *testing.T) {
	b := newBench(t)
	c := container{script: `while read line; do echo "got $line"; echo "err $line" >&2; done; exit 15`}
	c.Stdin, c.StdinOnce = true, true
	b.run("c", c)
	outR, outW := pipe(t)
	errR, errW := pipe(t)
	s, err := b.Attach(b.context(), &keeper.Attach{Key: "c", Stdout: outW, Stderr: errW})
	if err != nil {
		t.Fatal(err)
	}
	_, _ = outW.Close(), errW.Close()
	out, errs := bufio.NewReader(outR), bufio.NewReader(errR)
	say := func(text string) {
		t.Helper()
		if _, err := io.WriteString(s.Stdin, text+"\n"); err != nil {
			t.Fatal(err)
		}
		if line, err := out.ReadString('\n'); err != nil || line != "got "+text+"\n" {
			t.Fatalf("output %q, %v", line, err)
		}
		if line, err := errs.ReadString('\n'); err != nil || line != "err "+text+"\n" {
			t.Fatalf("stderr %q, %v", line, err)
		}
	}
	say("one")
	b.kill(b.worker)
	b.stateOf("c")
	// The session goes on with the new worker: from when on, the output tells.
	if _, err := io.WriteString(s.Stdin, "x\n"); err != nil {
		t.Fatal(err)
	}
	b.eventually("log", func() bool { log, _, _ := logged(t, b.log, crilog.Stdout); return strings.HasSuffix(log, "got x\n") })
	_ = s.Stdin.Close()
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Wait(b.context()); err == nil {
		t.Error("a session that was left reports an exit")
	}
	if e := b.exit("c"); e.Code != 15 { // StdinOnce: its input ended with the session
		t.Errorf("exit %+v, want 15", e)
	}
}

func TestAttachEndsWithTheContainer(t *testing.T) {
	b := newBench(t)
	b.run("c", container{script: waitAndExit})
	r, w := pipe(t)
	s, err := b.Attach(b.context(), &keeper.Attach{Key: "c", Stdout: w})
	if err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	b.touch("go")
	out, err := io.ReadAll(r)
	if err != nil || !strings.HasSuffix(string(out), "down\n") {
		t.Errorf("output %q, %v", out, err)
	}
	if e, err := s.Wait(b.context()); err != nil || e.Code != 9 {
		t.Errorf("exit %+v, %v; want 9", e, err)
	}
	if err := s.Kill(); err != nil {
		t.Errorf("kill of a session that has ended: %v", err)
	}
}

func TestAttachToATerminal(t *testing.T) {
	b := newBench(t)
	c := container{script: "read x; stty size; exit 16"}
	c.TTY, c.Stdin = true, true
	b.run("c", c)
	r, w := pipe(t)
	s, err := b.Attach(b.context(), &keeper.Attach{Key: "c", Stdout: w})
	if err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	resize(t, s.Stdin, 44, 122)
	if _, err = io.WriteString(s.Stdin, "go\n"); err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(r)
	if err != nil || !bytes.Contains(out, []byte("44 122\r\n")) {
		t.Errorf("output %q, %v", out, err)
	}
	if log, _, _ := logged(t, b.log, crilog.Stdout); log != string(out) {
		t.Errorf("log %q, attach %q", log, out)
	}
	if e := b.exit("c"); e.Code != 16 {
		t.Errorf("exit %+v, want 16", e)
	}
}

func TestSlowAttachIsCutOff(t *testing.T) {
	b := newBench(t)
	check := &checker{t: t}
	req := b.run("writer", container{script: numbers})
	_, w := pipe(t) // nobody reads
	s, err := b.Attach(b.context(), &keeper.Attach{Key: "writer", Stdout: w})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Wait(b.context()); !errdefs.IsAborted(err) {
		t.Errorf("slow attach: %v", err)
	}
	b.touch("stop")
	b.exit("writer")
	check.file(req.LogPath)
	if check.next == 0 || check.next%20000 != 0 {
		t.Errorf("the log ends after line %d", check.next)
	}
}

func TestExecEndsWithItsClient(t *testing.T) {
	b := newBench(t)
	b.run("c", container{script: idle})
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	other := b.connect(path)
	s, err := other.Exec(b.context(), &keeper.Exec{Key: "c", Process: ociProcess(false, "sleep", "1003")})
	if err != nil {
		t.Fatal(err)
	}
	b.eventually("process", func() bool { return processRuns("sleep", "1003") })
	keeper.Abandon(s)
	b.eventually("end of the process", func() bool { return !processRuns("sleep", "1003") })
}

// An exec that there is no room to put on record fails, and its process does not go on without anybody.
func TestExecThatCannotBeRecorded(t *testing.T) {
	b := newBench(t)
	path := filepath.Join(b.dir, "full")
	script := `#!/bin/sh
/usr/bin/crun "$@" || exit
for word; do
	case $word in */process.json) mkdir "${word%process.json}exec.json";; esac # no file takes a directory's place
done
`
	if err := os.WriteFile(path, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	c := container{script: idle}
	c.Runtime = keeper.Runtime{Path: path, Args: []string{"--root", b.crun}}
	b.run("c", c)
	r, w := pipe(t)
	_, err := b.Exec(b.context(), &keeper.Exec{Key: "c", Process: ociProcess(false, "sh", "-c", "sleep 1000008"), Stdout: w})
	if err == nil || !strings.Contains(err.Error(), "record exec") {
		t.Errorf("exec: %v", err)
	}
	_ = w.Close()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = io.Copy(io.Discard, r) // to the end of the last who has the other one
	}()
	b.eventually("end of the exec that failed", func() bool {
		select {
		case <-ended:
			return true
		default:
			return false
		}
	})
}
