package cni_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"gantry/internal/cni"
)

func TestStatusSaysWhyNot(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		want  []string // none: ready
	}{
		"an empty directory":             {nil, []string{"no network configuration in "}},
		"a file that is no JSON":         {map[string]string{"10-x.conflist": "{"}, []string{"10-x.conflist", "unexpected end of JSON input"}},
		"a list without a name":          {map[string]string{"10-x.conflist": `{"plugins": [{"type": "plain"}]}`}, []string{"10-x.conflist", "no name"}},
		"a list without plugins":         {map[string]string{"10-x.conflist": `{"name": "x", "plugins": []}`}, []string{"10-x.conflist", "no plugins"}},
		"a list in a file for one":       {map[string]string{"10-x.conf": list("1.0.0", "plain")}, []string{"10-x.conf", "belongs into a .conflist file"}},
		"a version nobody knows":         {map[string]string{"10-x.conflist": list("9.0.0", "plain")}, []string{"10-x.conflist", `"9.0.0"`}},
		"a plugin that is not installed": {map[string]string{"10-x.conflist": list("1.0.0", "absent")}, []string{"10-x.conflist", `"absent"`}},
		"a plugin that is not ready":     {map[string]string{"10-x.conflist": list("1.1.0", "unready")}, []string{"10-x.conflist", "its daemon is down"}},
		"a version too old for STATUS":   {map[string]string{"10-x.conflist": list("1.0.0", "unready")}, nil},
		"a file that is valid":           {map[string]string{"10-x.conflist": list("1.0.0", "plain")}, nil},
		"a single plugin":                {map[string]string{"10-x.conf": `{"cniVersion": "1.0.0", "name": "x", "type": "plain"}`}, nil},
		"an invalid file before a valid": {map[string]string{"10-x.conf": "{", "20-y.conflist": list("1.0.0", "plain")}, nil},
		"files of other kinds":           {map[string]string{"10-x.txt": list("1.0.0", "plain")}, []string{"no network configuration in "}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.plugin("plain", ready)
			s.plugin("unready", `[ $CNI_COMMAND = STATUS ] && { echo '{"code": 50, "msg": "its daemon is down"}'; exit 1; }; `+ready)
			for file, content := range c.files {
				s.conf(file, content)
			}
			err := s.start().Status(t.Context())
			if c.want == nil {
				if err != nil {
					t.Errorf("Status: %v", err)
				}
				return
			}
			if !errors.Is(err, errdefs.ErrUnavailable) {
				t.Errorf("Status: %v; want it to be Unavailable", err)
			}
			for _, want := range c.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("Status: %v; want %q in it", err, want)
				}
			}
		})
	}
}

func TestAttachWithoutConfiguration(t *testing.T) {
	s := newSite(t)
	n := s.start()
	if _, err := n.Attach(t.Context(), newPod(t)); !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(err.Error(), s.opts.ConfDir) {
		t.Errorf("Attach: %v", err)
	}
	cached(t, n)
}

func TestConfigurationIsWatched(t *testing.T) {
	s := newSite(t)
	s.plugin("plain", ready)
	if err := os.RemoveAll(filepath.Dir(filepath.Dir(s.opts.ConfDir))); err != nil {
		t.Fatal(err)
	}
	n := s.start()
	if err := n.Status(t.Context()); err == nil || !strings.Contains(err.Error(), s.opts.ConfDir) {
		t.Errorf("Status without a directory: %v", err)
	}
	if err := os.MkdirAll(s.opts.ConfDir, 0o755); err != nil {
		t.Fatal(err)
	}
	s.conf("20.conflist", list("1.0.0", "plain"))
	s.waitLog("20.conflist network=test")
	if err := n.Status(t.Context()); err != nil {
		t.Errorf("Status with a configuration: %v", err)
	}
	s.conf("10.conflist", "{")
	s.waitLog("10.conflist: ")
	if err := n.Status(t.Context()); err != nil {
		t.Errorf("Status with an invalid file before the valid: %v", err)
	}
	s.conf("10.conflist", list("1.0.0", "plain"))
	s.waitLog("10.conflist network=test")
	if err := os.RemoveAll(s.opts.ConfDir); err != nil {
		t.Fatal(err)
	}
	s.waitLog("no such file or directory")
	if err := n.Status(t.Context()); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("Status after the directory went: %v", err)
	}
}

func TestPluginsBesideTheList(t *testing.T) {
	s := newSite(t)
	verbs := s.plugin("plain", ready)
	s.conf("10.conflist", `{"cniVersion": "1.0.0", "name": "test"}`)
	if err := os.Mkdir(filepath.Join(s.opts.ConfDir, "test"), 0o755); err != nil {
		t.Fatal(err)
	}
	s.conf("test/10-plain.conf", `{"type": "plain"}`)
	n := s.start()
	a := newPod(t)
	attach(t, n, a)
	if err := os.RemoveAll(s.opts.ConfDir); err != nil {
		t.Fatal(err)
	}
	detach(t, n, a)
	if got := read(t, verbs); got != "ADD\nDEL\n" {
		t.Errorf("the plugin saw %q", got)
	}
}

func TestBuiltInConfiguration(t *testing.T) {
	s := newSite(t)
	s.plugin("plain", ready)
	s.conf("10.conflist", "{")
	s.opts.Config = []byte(list("1.0.0", "plain"))
	n := s.start()
	if err := n.Status(t.Context()); err != nil {
		t.Errorf("Status: %v", err)
	}
	attach(t, n, newPod(t))
	s.opts.Config = []byte("{")
	if _, err := cni.New(s.opts); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("New with a broken configuration: %v", err)
	}
}
