package worker

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/keeper/wire"
)

// What gets hold of the running program's file, as a container does of a runtime's, can't write to it.
func TestProgramCannotBeWritten(t *testing.T) {
	dir := t.TempDir()
	said := filepath.Join(dir, "said")
	run := func(path string, clones bool, args ...string) string {
		t.Helper()
		out, err := os.Create(said)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = out.Close() }()
		rt := wire.Runtime{Path: path, Args: args, Clones: clones}
		if err = invoke(context.Background(), rt, dir, [3]*os.File{nil, out, out}, "state"); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(said)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	program := filepath.Join(dir, "busybox")
	replace := func(with []byte) {
		t.Helper()
		if err := os.WriteFile(program+".new", with, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(program+".new", program); err != nil {
			t.Fatal(err)
		}
	}
	// writeLater opens for writing what a process got hold of while the program ran.
	writeLater := func(clones bool) error {
		out := run(program, clones, "sh", "-c", "exec 9</proc/$$/exe; /bin/sleep 1000 >/dev/null 2>&1 & echo $!")
		pid, err := strconv.Atoi(strings.TrimSpace(out))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = unix.Kill(pid, unix.SIGKILL) }()
		busy := time.Now().Add(30 * time.Second) // until the shell's child is a sleep
		for {
			f, err := os.OpenFile("/proc/"+strconv.Itoa(pid)+"/fd/9", os.O_WRONLY, 0)
			if err == nil {
				_ = f.Close()
			}
			if !errors.Is(err, unix.ETXTBSY) || time.Now().After(busy) {
				return err
			}
			<-time.After(time.Millisecond)
		}
	}
	shell, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	replace(shell)
	if err = writeLater(true); !errors.Is(err, unix.EROFS) {
		t.Errorf("writing to the program of a runtime that was given a file: %v, want %v", err, unix.EROFS)
	}
	if err = writeLater(false); err != nil {
		t.Errorf("of one that clones nothing: %v", err)
	}
	// One that an operator puts in its place, a wrapper too, is what runs from then on.
	replace([]byte("#!/bin/sh\necho wrapped\n"))
	if out := run(program, true); out != "wrapped\n" {
		t.Errorf("a script said %q", out)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), program) {
		t.Error("it is mounted where people can see it")
	}
}
