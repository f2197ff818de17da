// Package ociruntime knows the command lines of OCI runtimes such as crun and runc: where they are,
// what they can do, and the commands that the server itself gives. Creating, starting and ending
// containers is the keeper's.
package ociruntime

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// ErrUnusable means that a runtime's binary is missing or does not run.
var ErrUnusable = errors.New("OCI runtime is unusable")

// oldestVersion is the ociVersion that every runtime accepts which cannot say what it supports:
// crun before 1.9 refuses anything newer than 1.0.2.
const oldestVersion = "1.0.2"

// Runtime is how to call an OCI runtime.
type Runtime struct {
	Path string   // of the binary
	Args []string // global arguments, before the command
}

// Features is what a runtime can do.
type Features struct {
	Name          string   // "crun", "runc"; the binary's name where it does not say
	Version       string   // of the runtime
	OCIVersion    string   // the highest that it accepts
	MountOptions  []string // that it knows; where it does not say, what its version is known to have
	SystemdCgroup bool     // it can make cgroups through systemd
	// UserNamespaces says that it joins a user namespace; a runtime that says nothing about namespaces
	// does, if it is crun or runc.
	UserNamespaces bool
	// Checkpoints says that it has checkpoint and restore; what they need beside it is CheckpointGap's.
	Checkpoints bool
	// Direct says that it is crun itself, not a wrapper: what its start and delete do is known (its
	// src/libcrun/status.c and container.c, the same in every 1.x), and can be done without a process; and
	// it takes a program on a read-only mount for the copy of itself that it would else make (cloned_binary.c).
	Direct bool
}

// RecursiveReadOnly says whether the runtime knows the mount option "rro".
func (f *Features) RecursiveReadOnly() bool { return slices.Contains(f.MountOptions, "rro") }

// Find returns the absolute path of a runtime: name itself when it is a path, else where PATH has it.
func Find(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%w: %s: %w", ErrUnusable, name, unwrapped(err))
	}
	return filepath.Abs(path)
}

// Check says whether the binary at path is there and may be run. It starts no process.
func Check(path string) error {
	st, err := os.Stat(path)
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", ErrUnusable, err)
	case st.IsDir() || st.Mode()&0o111 == 0:
		return fmt.Errorf("%w: %s: %w", ErrUnusable, path, fs.ErrPermission)
	}
	return nil
}

// GlobalArgs are the arguments before the command: root is where the runtime keeps its state of
// containers, systemd asks for cgroups made by systemd.
func GlobalArgs(root string, systemd bool) []string {
	args := []string{"--root", root}
	if systemd {
		args = append(args, "--systemd-cgroup")
	}
	return args
}

// Probe asks the runtime at path what it is and what it can do.
func Probe(ctx context.Context, path string) (*Features, error) {
	f := &Features{Name: filepath.Base(path), OCIVersion: oldestVersion}
	out, err := output(ctx, path, "--version")
	if err != nil {
		return nil, err
	}
	f.Name, f.Version = parseVersion(out, f.Name)
	f.SystemdCgroup = f.Name != "crun" || bytes.Contains(out, []byte("+SYSTEMD"))
	f.UserNamespaces = f.Name == "crun" || f.Name == "runc"
	f.Checkpoints = f.Name == "runc" || f.Name == "runsc" || f.Name == "crun" && bytes.Contains(out, []byte("+CRIU"))
	f.Direct = f.Name == "crun" && since(f.Version, 1, 0) && isProgram(path, "crun")
	// Runtimes of the time before the command print a usage text or an error.
	if out, err := output(ctx, path, "features"); err == nil {
		f.read(out)
	}
	if f.MountOptions == nil && f.Name == "crun" && since(f.Version, 1, 4) {
		f.MountOptions = []string{"rro"}
	}
	return f, nil
}

// isProgram says whether the file at path is a binary of that name: no script, nor another runtime that
// passes commands on.
func isProgram(path, name string) bool {
	path, err := filepath.EvalSymlinks(path)
	if err != nil || filepath.Base(path) != name {
		return false
	}
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	magic := make([]byte, len(elf.ELFMAG))
	_, err = io.ReadFull(f, magic)
	return err == nil && string(magic) == elf.ELFMAG
}

// since says whether a version, such as 1.8.1, is major.minor or later.
func since(version string, major, minor int) bool {
	var haveMajor, haveMinor int
	if n, _ := fmt.Sscanf(version, "%d.%d", &haveMajor, &haveMinor); n < 2 {
		return false
	}
	return haveMajor > major || haveMajor == major && haveMinor >= minor
}

// read takes over what `features` printed (OCI runtime spec, features.md).
func (f *Features) read(out []byte) {
	var said struct {
		OCIVersionMax string            `json:"ociVersionMax"`
		MountOptions  []string          `json:"mountOptions"`
		Annotations   map[string]string `json:"annotations"`
		Linux         struct {
			Namespaces []string `json:"namespaces"`
			Cgroup     struct {
				Systemd *bool `json:"systemd"`
			} `json:"cgroup"`
		} `json:"linux"`
	}
	if json.Unmarshal(out, &said) != nil {
		return
	}
	// A pre-release such as 1.0.2-dev accepts the release it precedes.
	if v, _, _ := strings.Cut(said.OCIVersionMax, "-"); v != "" {
		f.OCIVersion = v
	}
	f.MountOptions = said.MountOptions
	if n := said.Linux.Namespaces; n != nil {
		f.UserNamespaces = slices.Contains(n, "user")
	}
	if s := said.Linux.Cgroup.Systemd; s != nil {
		f.SystemdCgroup = *s
	}
	for name, value := range said.Annotations {
		if strings.HasSuffix(name, ".checkpoint.enabled") {
			f.Checkpoints = value == "true"
		}
	}
}

var versionLine = regexp.MustCompile(`(?m)^(\S+) version (\S+)`)

func parseVersion(out []byte, fallback string) (name, version string) {
	m := versionLine.FindSubmatch(out)
	if m == nil {
		return fallback, ""
	}
	return string(m[1]), string(m[2])
}

// Update applies resources, an OCI LinuxResources as JSON, to the container id.
func Update(ctx context.Context, r Runtime, id string, resources []byte) error {
	cmd := command(ctx, r.Path, slices.Concat(r.Args, []string{"update", "--resources", "-", id})...)
	cmd.Stdin = bytes.NewReader(resources)
	return give(ctx, cmd, "update")
}

func output(ctx context.Context, path string, args ...string) ([]byte, error) {
	cmd := command(ctx, path, args...)
	cmd.WaitDelay = answering
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%w: %s %s: %w%s", ErrUnusable, path, strings.Join(args, " "), unwrapped(err), said(stderr.Bytes()))
	}
	return out, nil
}

// said renders what a command printed, shortened, for an error's end.
func said(out []byte) string {
	const most = 1000
	out = bytes.TrimSpace(out)
	if len(out) == 0 {
		return ""
	}
	return ": " + string(out[:min(len(out), most)])
}

// unwrapped takes the words of package exec off, which repeat the path.
func unwrapped(err error) error {
	var e *exec.Error
	if errors.As(err, &e) {
		return e.Err
	}
	return err
}
