package ociruntime_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gantry/internal/ociruntime"
)

// program writes a shell script that stands for a runtime.
func program(t *testing.T, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ocirun")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestProbe(t *testing.T) {
	const crun = `case $1 in --version) echo "crun version 1.8.1"; echo "+SYSTEMD +SECCOMP";; *) echo "unknown command $1" >&2; exit 1;; esac`
	const runc = `case $1 in --version) echo "runc version 1.4.0"; echo "commit: v1";;
		features) echo '{"ociVersionMin":"1.0.0","ociVersionMax":"1.3.0-rc.1","mountOptions":["ro","rro"],"linux":{"cgroup":{"systemd":false}}}';; esac`
	tests := map[string]struct {
		script string
		want   ociruntime.Features
		rro    bool
	}{
		"without the features command": {
			script: crun, rro: true, want: ociruntime.Features{Name: "crun", Version: "1.8.1", OCIVersion: "1.0.2", SystemdCgroup: true},
		},
		"from before it had recursive read-only mounts": {
			script: strings.ReplaceAll(crun, "1.8.1", "1.3"), want: ociruntime.Features{Name: "crun", Version: "1.3", OCIVersion: "1.0.2", SystemdCgroup: true},
		},
		"with it": {
			script: runc, rro: true,
			want: ociruntime.Features{Name: "runc", Version: "1.4.0", OCIVersion: "1.3.0"},
		},
		"that says nothing of use": {
			script: "echo hello", want: ociruntime.Features{Name: "ocirun", OCIVersion: "1.0.2", SystemdCgroup: true},
		},
	}
	for rule, tt := range tests {
		t.Run(rule, func(t *testing.T) {
			got, err := ociruntime.Probe(t.Context(), program(t, tt.script))
			if err != nil {
				t.Fatal(err)
			}
			if got.RecursiveReadOnly() != tt.rro {
				t.Errorf("recursive read-only %v", got.RecursiveReadOnly())
			}
			got.MountOptions = nil
			if got.Name != tt.want.Name || got.Version != tt.want.Version || got.OCIVersion != tt.want.OCIVersion || got.SystemdCgroup != tt.want.SystemdCgroup {
				t.Errorf("features %+v, want %+v", *got, tt.want)
			}
		})
	}
}

func TestProbeOfInstalledRuntimes(t *testing.T) {
	for _, name := range []string{"crun", "runc"} {
		path, err := ociruntime.Find(name)
		if err != nil {
			t.Fatal(err)
		}
		f, err := ociruntime.Probe(t.Context(), path)
		if err != nil || f.Name != name || f.Version == "" || !strings.HasPrefix(f.OCIVersion, "1.") {
			t.Errorf("%s: %+v, %v", name, f, err)
		}
		if f.Direct != (name == "crun") {
			t.Errorf("%s: what its start and delete do is known: %v", name, f.Direct)
		}
		// What passes commands on to it may do more than it does.
		wrapper := filepath.Join(t.TempDir(), name)
		if err = os.WriteFile(wrapper, []byte("#!/bin/sh\nexec "+path+" \"$@\"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		if f, err = ociruntime.Probe(t.Context(), wrapper); err != nil || f.Name != name || f.Direct {
			t.Errorf("a wrapper of %s: %+v, %v", name, f, err)
		}
	}
}

func TestUnusableRuntimesAreNamed(t *testing.T) {
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	tests := map[string]func() error{
		"no-such-runtime": func() error { _, err := ociruntime.Find("no-such-runtime"); return err },
		dir + "/absent":   func() error { return ociruntime.Check(dir + "/absent") },
		plain:             func() error { return ociruntime.Check(plain) },
		dir:               func() error { return ociruntime.Check(dir) },
		"out of memory": func() error {
			_, err := ociruntime.Probe(t.Context(), program(t, "echo out of memory >&2; exit 1"))
			return err
		},
	}
	for names, call := range tests {
		if err := call(); !errors.Is(err, ociruntime.ErrUnusable) || !strings.Contains(err.Error(), names) {
			t.Errorf("error %v does not name %s", err, names)
		}
	}
	if err := ociruntime.Check("/bin/sh"); err != nil {
		t.Errorf("a program that is there: %v", err)
	}
}

func TestUpdateHandsOverResources(t *testing.T) {
	path := program(t, `echo "$@" > "$0.args"; cat > "$0.stdin"`)
	r := ociruntime.Runtime{Path: path, Args: ociruntime.GlobalArgs("/state", true)}
	if want := []string{"--root", "/state", "--systemd-cgroup"}; !slices.Equal(r.Args, want) {
		t.Errorf("global arguments %v, want %v", r.Args, want)
	}
	if err := ociruntime.Update(t.Context(), r, "c1", []byte(`{"memory":{}}`)); err != nil {
		t.Fatal(err)
	}
	args, _ := os.ReadFile(path + ".args")
	stdin, _ := os.ReadFile(path + ".stdin")
	if got := strings.TrimSpace(string(args)); got != "--root /state --systemd-cgroup update --resources - c1" || string(stdin) != `{"memory":{}}` {
		t.Errorf("arguments %q, stdin %q", got, stdin)
	}
	r.Path = program(t, "echo no such container >&2; exit 1")
	if err := ociruntime.Update(t.Context(), r, "c1", nil); err == nil || !strings.Contains(err.Error(), "no such container") {
		t.Errorf("error %v does not tell what the runtime said", err)
	}
}
