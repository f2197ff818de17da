package doctor_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/config"
	"gantry/internal/doctor"
	"gantry/internal/nri"
)

// tree is a machine: files by path below its root.
type tree map[string]string

// with returns the tree changed; an empty text removes a file.
func (t tree) with(changes tree) tree {
	out := maps.Clone(t)
	for path, text := range changes {
		if out[path] = text; text == "" {
			delete(out, path)
		}
	}
	return out
}

func (t tree) write(tb testing.TB) string {
	tb.Helper()
	dir := tb.TempDir()
	for path, text := range t {
		full := filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(full), 0o700); err != nil {
			tb.Fatal(err)
		}
		if err := os.WriteFile(full, []byte(text+"\n"), 0o600); err != nil {
			tb.Fatal(err)
		}
	}
	return dir
}

// good is a machine of 2025 with cgroup v2.
var good = tree{
	"proc/sys/kernel/osrelease":             "6.15.0-amd64",
	"proc/self/ns/mnt":                      "-",
	"proc/self/ns/net":                      "-",
	"proc/self/ns/pid":                      "-",
	"proc/self/ns/ipc":                      "-",
	"proc/self/ns/uts":                      "-",
	"proc/self/ns/user":                     "-",
	"proc/sys/user/max_user_namespaces":     "62000",
	"proc/self/status":                      "Name:\tgantry\nUid:\t0\t0\t0\t0\nCapEff:\t000001ffffffffff",
	"proc/self/oom_score_adj":               "0",
	"proc/self/limits":                      "Limit                     Soft Limit           Hard Limit           Units\nMax open files            1024                 1048576              files",
	"proc/sys/kernel/seccomp/actions_avail": "kill_process allow",
	"sys/fs/cgroup/cgroup.controllers":      "cpuset cpu io memory hugetlb pids",
	"sys/fs/cgroup/cgroup.procs":            "1",
}

var noV2 = tree{"sys/fs/cgroup/cgroup.controllers": "", "sys/fs/cgroup/cgroup.procs": ""}

var v1 = good.with(noV2).with(tree{
	"sys/fs/cgroup/cpu/cgroup.procs": "1", "sys/fs/cgroup/memory/cgroup.procs": "1", "sys/fs/cgroup/pids/cgroup.procs": "1",
	"sys/fs/cgroup/cpuset/cgroup.procs": "1", "sys/fs/cgroup/hugetlb/cgroup.procs": "1",
})

var hybrid = v1.with(tree{
	"sys/fs/cgroup/unified/cgroup.procs": "1", "sys/fs/cgroup/unified/cgroup.controllers": "hugetlb",
})

func options(runtime string) *config.Options {
	o := config.Default()
	o.Runtime.Default = runtime
	o.Runtime.Paths = map[string]string{runtime: "/usr/bin/" + runtime}
	return &o
}

func TestInspect(t *testing.T) {
	systemd := options("crun")
	systemd.Cgroup.Driver = "systemd"
	both := options("runc")
	both.Runtime.Paths["crun"] = "/usr/bin/crun"
	tests := map[string]struct {
		tree  tree
		conf  *config.Options
		check string
		level doctor.Level
		says  string // in the message
		mend  string // in what to do
	}{
		"a good machine has nothing wrong":  {good, options("crun"), "kernel", doctor.OK, "Linux 6.15", ""},
		"old kernel":                        {good.with(tree{"proc/sys/kernel/osrelease": "4.19.0-27"}), options("crun"), "kernel", doctor.Fail, "older than 5.4", "newer kernel"},
		"no recursive read-only mounts":     {good.with(tree{"proc/sys/kernel/osrelease": "5.10.0"}), options("crun"), "kernel", doctor.Warn, "recursive read-only", "newer kernel"},
		"no exit codes after the fact":      {good.with(tree{"proc/sys/kernel/osrelease": "6.1.0"}), options("crun"), "kernel", doctor.OK, "6.15", ""},
		"strange kernel":                    {good.with(tree{"proc/sys/kernel/osrelease": "next"}), options("crun"), "kernel", doctor.Warn, `"next"`, ""},
		"no namespaces":                     {good.with(tree{"proc/self/ns/ipc": ""}), options("crun"), "namespaces", doctor.Fail, "ipc", ""},
		"user namespaces are off":           {good.with(tree{"proc/sys/user/max_user_namespaces": "0"}), options("crun"), "namespaces", doctor.Warn, "hostUsers", "sysctl -w"},
		"not root":                          {good.with(tree{"proc/self/status": "Uid:\t1000\t1000\nCapEff:\t0"}), options("crun"), "privileges", doctor.Fail, "user 1000 is not root", "run gantry as root"},
		"root without CAP_NET_ADMIN":        {good.with(tree{"proc/self/status": "Uid:\t0\nCapEff:\t000001ffffffefff"}), options("crun"), "privileges", doctor.Fail, "CAP_NET_ADMIN", ""},
		"root without CAP_SYS_RESOURCE":     {good.with(tree{"proc/self/status": "Uid:\t0\nCapEff:\t000001fffeffffff"}), options("crun"), "privileges", doctor.Warn, "oom_score_adj below the server's own (0)", ""},
		"few files":                         {good.with(tree{"proc/self/limits": "Max open files 1024 20000 files"}), options("crun"), "limits", doctor.Warn, "about 2000 containers", "LimitNOFILE"},
		"too few files":                     {good.with(tree{"proc/self/limits": "Max open files 1024 1024 files"}), options("crun"), "limits", doctor.Fail, "at most 1024", "LimitNOFILE"},
		"cgroup v2":                         {good, options("crun"), "cgroup", doctor.OK, "cgroup v2", ""},
		"cgroup v1":                         {v1, options("crun"), "cgroup", doctor.Warn, "failCgroupV1", "unified_cgroup_hierarchy=1"},
		"hybrid stops crun":                 {hybrid, options("crun"), "cgroup", doctor.Fail, "cgroups in hybrid mode not supported", "unshare --mount=/run/gantry-ns/mnt umount /sys/fs/cgroup/unified"},
		"hybrid with crun not the default":  {hybrid, both, "cgroup", doctor.Warn, "crun refuses", "unshare --mount"},
		"hybrid without crun":               {hybrid, options("runc"), "cgroup", doctor.Warn, "hybrid", ""},
		"no cgroups":                        {good.with(noV2), options("crun"), "cgroup", doctor.Fail, "cgroup", "mount -t cgroup2"},
		"no memory controller":              {good.with(tree{"sys/fs/cgroup/cgroup.controllers": "cpu pids"}), options("crun"), "cgroup", doctor.Fail, "missing: memory", "cgroup_disable"},
		"no hugetlb controller":             {good.with(tree{"sys/fs/cgroup/cgroup.controllers": "cpu pids memory cpuset"}), options("crun"), "cgroup", doctor.Warn, "hugetlb", ""},
		"systemd driver without systemd":    {good, systemd, "cgroup", doctor.Fail, "systemd does not run", "--cgroup-driver cgroupfs"},
		"no seccomp":                        {good.with(tree{"proc/sys/kernel/seccomp/actions_avail": ""}), options("crun"), "seccomp", doctor.Warn, "no seccomp", ""},
		"AppArmor and SELinux are reported": {good.with(tree{"sys/module/apparmor/parameters/enabled": "Y", "sys/fs/selinux/enforce": "0"}), options("crun"), "lsm", doctor.OK, "AppArmor; SELinux, permissive", ""},
		"neither AppArmor nor SELinux":      {good, options("crun"), "lsm", doctor.OK, "neither", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			all := doctor.Inspect(t.Context(), doctor.Options{Config: tt.conf, Root: tt.tree.write(t)})
			for _, f := range all {
				if f.Check == tt.check && f.Level == tt.level && strings.Contains(f.Message, tt.says) && strings.Contains(f.Mend, tt.mend) {
					return
				}
			}
			t.Errorf("want %s %s %q %q; got %+v", tt.level, tt.check, tt.says, tt.mend, all)
		})
	}
}

func TestGoodMachineIsOK(t *testing.T) {
	all := doctor.Inspect(t.Context(), doctor.Options{Config: options("crun"), Root: good.write(t)})
	if doctor.Worst(all) != doctor.OK {
		t.Errorf("%+v", all)
	}
}

// find returns the findings of one check on this machine.
func find(t *testing.T, o doctor.Options, check string) []doctor.Finding {
	t.Helper()
	var out []doctor.Finding
	for _, f := range doctor.Run(t.Context(), o) {
		if f.Check == check {
			out = append(out, f)
		}
	}
	return out
}

func TestProgramsThatAreNotThere(t *testing.T) {
	o := options("crun")
	o.Runtime.Paths = map[string]string{"crun": filepath.Join(t.TempDir(), "crun"), "other": filepath.Join(t.TempDir(), "other")}
	o.Keeper.Binary = filepath.Join(t.TempDir(), "gantry-keeper")
	levels := map[string]doctor.Level{}
	for _, f := range find(t, doctor.Options{Config: o}, "runtimes") {
		levels[strings.Fields(f.Message)[0]] = f.Level
	}
	if levels["crun"] != doctor.Fail || levels["other:"] != doctor.Warn {
		t.Errorf("runtimes: %v", levels)
	}
	if f := find(t, doctor.Options{Config: o}, "keeper"); f[0].Level != doctor.Fail {
		t.Errorf("keeper: %+v", f)
	}
	o.Runtime.Paths, o.Keeper.Binary = nil, ""
	if f := find(t, doctor.Options{Config: o}, "runtimes"); f[0].Level != doctor.Fail || !strings.Contains(f[0].Mend, "install") {
		t.Errorf("no runtime: %+v", f)
	}
	if f := find(t, doctor.Options{Config: o}, "keeper"); f[0].Level != doctor.Fail {
		t.Errorf("no keeper: %+v", f)
	}
}

func TestCNIWithoutConfiguration(t *testing.T) {
	o := options("crun")
	o.Network.CNIConfDir = t.TempDir()
	f := find(t, doctor.Options{Config: o}, "network")
	if f[0].Level != doctor.Fail || !strings.Contains(f[0].Mend, "--network builtin") {
		t.Errorf("%+v", f)
	}
}

func TestRegistries(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v2/" {
			http.NotFound(w, r)
			return
		}
		w.WriteHeader(http.StatusUnauthorized)
	}))
	defer srv.Close()
	dir := t.TempDir()
	write := func(host, text string) {
		if err := os.MkdirAll(filepath.Join(dir, host), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, host, "hosts.toml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("registry.example", "server = \""+srv.URL+"\"\n")
	o := options("crun")
	o.Images.CertsDir = dir
	all := find(t, doctor.Options{Config: o, Registries: []string{"registry.example"}}, "registries")
	if doctor.Worst(all) != doctor.OK || len(all) != 2 {
		t.Errorf("a registry that asks for a password answers: %+v", all)
	}
	write("registry.example", "server = \"http://"+deaf(t)+"\"\n")
	all = find(t, doctor.Options{Config: o, Registries: []string{"registry.example"}}, "registries")
	if doctor.Worst(all) != doctor.Fail {
		t.Errorf("a registry that is gone: %+v", all)
	}
	write("bad.example", "server = [")
	all = find(t, doctor.Options{Config: o}, "registries")
	if doctor.Worst(all) != doctor.Fail || !strings.Contains(all[0].Message, "bad.example") {
		t.Errorf("a hosts.toml that is no TOML: %+v", all)
	}
}

// deaf is an address at which nobody listens, and nobody else will: its port is taken.
func deaf(t *testing.T) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err = unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	bound, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", bound.(*unix.SockaddrInet4).Port)
}

func TestServer(t *testing.T) {
	bad := errors.New("no configuration")
	lost := time.Now()
	tests := map[string]struct {
		server func(context.Context) (*doctor.Server, error)
		worst  doctor.Level
	}{
		"ready":     {func(context.Context) (*doctor.Server, error) { return &doctor.Server{Version: "gantry"}, nil }, doctor.OK},
		"not ready": {func(context.Context) (*doctor.Server, error) { return &doctor.Server{Network: bad}, nil }, doctor.Fail},
		"a plugin is lost": {func(context.Context) (*doctor.Server, error) {
			return &doctor.Server{Plugins: []nri.Plugin{{Name: "10-a"}, {Name: "10-a", Lost: lost}, {Name: "20-b", Lost: lost}}}, nil
		}, doctor.Warn},
		"a plugin has come again": {func(context.Context) (*doctor.Server, error) {
			return &doctor.Server{Plugins: []nri.Plugin{{Name: "10-a"}, {Name: "10-a", Lost: lost}}}, nil
		}, doctor.OK},
		"silent": {func(context.Context) (*doctor.Server, error) { return nil, bad }, doctor.Warn},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if all := find(t, doctor.Options{Config: options("crun"), Server: tt.server}, "server"); doctor.Worst(all) != tt.worst {
				t.Errorf("%+v", all)
			}
		})
	}
}
