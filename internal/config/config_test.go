package config_test

import (
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"
	"github.com/spf13/pflag"

	"gantry/internal/config"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// nothing finds no program.
var nothing = config.Finder{LookPath: func(string) (string, error) { return "", exec.ErrNotFound }}

// finds has the programs given.
func finds(have map[string]string) config.Finder {
	return config.Finder{SelfDir: "/opt/gantry", LookPath: func(name string) (string, error) {
		if p, ok := have[name]; ok {
			return p, nil
		}
		return "", exec.ErrNotFound
	}}
}

func load(t *testing.T, f config.Finder, file string, args ...string) (*config.Options, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	set := pflag.NewFlagSet("test", pflag.ContinueOnError)
	flags := config.AddFlags(set)
	if err := set.Parse(append([]string{"--config", path}, args...)); err != nil {
		return nil, err
	}
	o, err := flags.Load(f)
	if err != nil {
		// the directory is another one in every run
		return nil, errorText(strings.ReplaceAll(err.Error(), path, "FILE"))
	}
	return o, nil
}

type errorText string

func (e errorText) Error() string { return string(e) }

func TestDefaultsAreGolden(t *testing.T) {
	o := config.Default()
	got, err := o.TOML()
	if err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "default.toml")
	if *update {
		if err = os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("default configuration changed (-want +got):\n%s", diff)
	}
}

func TestEffectiveConfigurationReadsBack(t *testing.T) {
	want, err := load(t, finds(map[string]string{"crun": "/usr/bin/crun"}), `
root = "/data/gantry"
[runtime.paths]
kata = "/opt/kata/bin/kata"
[network.builtin]
subnets = ["10.1.0.0/24"]
`, "--pinned-image", "registry.k8s.io/pause:3.10", "--mtu", "1400")
	if err != nil {
		t.Fatal(err)
	}
	text, err := want.TOML()
	if err != nil {
		t.Fatal(err)
	}
	got, err := load(t, nothing, string(text))
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("reads back differently (-want +got):\n%s", diff)
	}
}

func TestEveryKeyHasAFlag(t *testing.T) {
	o := config.Default()
	text, err := o.TOML()
	if err != nil {
		t.Fatal(err)
	}
	var tree map[string]any
	if err := toml.Unmarshal(text, &tree); err != nil {
		t.Fatal(err)
	}
	keys := map[string]bool{}
	leaves(tree, "", keys)
	if diff := cmp.Diff(config.Keys(), keys); diff != "" {
		t.Errorf("flags and file differ (-flags +file):\n%s", diff)
	}
}

func leaves(tree map[string]any, prefix string, into map[string]bool) {
	for k, v := range tree {
		if sub, ok := v.(map[string]any); ok && prefix+k != "runtime.paths" && prefix+k != "runtime.options" {
			leaves(sub, prefix+k+".", into)
			continue
		}
		into[prefix+k] = true
	}
}

func TestPrecedence(t *testing.T) {
	both := finds(map[string]string{"crun": "/usr/bin/crun", "runc": "/usr/sbin/runc", "/opt/gantry/gantry-keeper": "/opt/gantry/gantry-keeper", "gantry-keeper": "/usr/bin/gantry-keeper"})
	onlyRunc := finds(map[string]string{"runc": "/usr/sbin/runc", "gantry-keeper": "/usr/bin/gantry-keeper"})
	tests := map[string]struct {
		finder config.Finder
		file   string
		args   []string
		get    func(*config.Options) any
		want   any
	}{
		"the file wins over the default": {nothing, `root = "/data"`, nil,
			func(o *config.Options) any { return o.Root }, "/data"},
		"a flag wins over the file": {nothing, `root = "/data"`, []string{"--root", "/flag"},
			func(o *config.Options) any { return o.Root }, "/flag"},
		"a list flag replaces the file's list": {nothing, "[network]\ncni_bin_dirs = [\"/a\", \"/b\"]", []string{"--cni-bin-dir=/c", "--cni-bin-dir=/d"},
			func(o *config.Options) any { return o.Network.CNIBinDirs }, []string{"/c", "/d"}},
		"a list of the file replaces the default": {nothing, "[network]\ncni_bin_dirs = [\"/a\"]", nil,
			func(o *config.Options) any { return o.Network.CNIBinDirs }, []string{"/a"}},
		"a runtime flag adds to the file's and to PATH's": {both, "[runtime.paths]\nfast = \"/f\"", []string{"--runtime", "kata=/k"},
			func(o *config.Options) any { return o.Runtime.Paths },
			map[string]string{"crun": "/usr/bin/crun", "runc": "/usr/sbin/runc", "fast": "/f", "kata": "/k"}},
		"a named path wins over PATH": {both, "", []string{"--runtime", "crun=/my/crun"},
			func(o *config.Options) any { return o.Runtime.Paths["crun"] }, "/my/crun"},
		"crun is the default runtime": {both, "", nil,
			func(o *config.Options) any { return o.Runtime.Default }, "crun"},
		"runc is the default runtime where crun is absent": {onlyRunc, "", nil,
			func(o *config.Options) any { return o.Runtime.Default }, "runc"},
		"the default runtime may be chosen": {both, "", []string{"--default-runtime=runc"},
			func(o *config.Options) any { return o.Runtime.Default }, "runc"},
		"the keeper beside the server wins over PATH": {both, "", nil,
			func(o *config.Options) any { return o.Keeper.Binary }, "/opt/gantry/gantry-keeper"},
		"the keeper is found on PATH": {onlyRunc, "", nil,
			func(o *config.Options) any { return o.Keeper.Binary }, "/usr/bin/gantry-keeper"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			o, err := load(t, tt.finder, tt.file, tt.args...)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, tt.get(o)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestErrorsNameKeyAndOrigin(t *testing.T) {
	tests := map[string]struct {
		file string
		args []string
		want string
	}{
		"unknown key":                {"root = \"/r\"\nrooot = \"/x\"", nil, "FILE:2: rooot: unknown key"},
		"unknown key in a table":     {"[network]\nmod = \"cni\"", nil, "FILE:2: network.mod: unknown key"},
		"unknown table":              {"[plugins]\nx = 1", nil, "FILE:1: plugins: unknown key"},
		"wrong type":                 {"\nroot = 7", nil, "FILE:2: root: it is an integer, and must be a string"},
		"wrong type in a table":      {"[network.builtin]\nmtu = \"big\"", nil, "FILE:2: network.builtin.mtu: it is a string, and must be an integer"},
		"wrong type inline":          {"nri = {enabled = \"yes\"}", nil, "FILE:1: nri.enabled: it is a string, and must be a boolean"},
		"wrong type of a duration":   {"[container_logs]\nfull_disk_wait = 30", nil, "FILE:2: container_logs.full_disk_wait: it is an integer, and must be a string"},
		"wrong type in an array":     {"[network.builtin]\nsubnets = [1, 2]", nil, "FILE:2: network.builtin.subnets: it is an array of integers, and must be an array of strings"},
		"wrong types in an array":    {"[network.builtin]\nsubnets = [\"10.1.0.0/16\", 2.5]", nil, "it is an array of several types, and must be an array of strings"},
		"no array":                   {"[network.builtin]\nsubnets = \"10.1.0.0/16\"", nil, "FILE:2: network.builtin.subnets: it is a string, and must be an array of strings"},
		"wrong type in a free table": {"[runtime.paths]\ncrun = true", nil, "FILE:2: runtime.paths.crun: it is a boolean, and must be a string"},
		"no table":                   {"log = 2026-01-02", nil, "FILE:1: log: it is a date or time, and must be a table"},
		"a table":                    {"[root]\na = 1", nil, "root: it is a table, and must be a string"},
		"an integer too large":       {"[network.builtin]\nmtu = 99999999999999999999", nil, "FILE:2: "},
		"no TOML":                    {"root = ", nil, "FILE:1: toml: "},
		"illegal value":              {"[network]\nmode = \"bridge\"", nil, `FILE:2: network.mode: "bridge" is not cni or builtin`},
		"illegal value inline":       {"log = {level = \"loud\"}", nil, `FILE:1: log.level: "loud" is not debug or info or warn or error`},
		"illegal value by flag":      {"[network]\nmode = \"cni\"", []string{"--network", "none"}, `--network: network.mode: "none" is not cni or builtin`},
		"engine":                     {`engine = "vm"`, nil, `FILE:1: engine: "vm" is not native`},
		"relative path":              {`root = "lib"`, nil, `FILE:1: root: "lib" is not an absolute path`},
		"root and state the same":    {"root = \"/x\"\nstate = \"/x/\"", nil, `FILE:2: state: is the same directory as root`},
		"listen is a TCP address":    {"", []string{"--listen", "tcp://127.0.0.1:1"}, `--listen: listen: "tcp://127.0.0.1:1" is not unix:///PATH`},
		"listen is too long":         {"", []string{"--listen", "unix:///" + strings.Repeat("x", 107)}, `longer than the 107 bytes`},
		"certificate without key":    {"", []string{"--streaming-tls-cert", "/etc/cert.pem"}, `--streaming-tls-cert: streaming.tls_cert: a certificate and its key come together`},
		"streaming without port":     {"", []string{"--streaming-listen", "localhost"}, `--streaming-listen: streaming.listen: "localhost" is not HOST:PORT`},
		"port out of range":          {"", []string{"--metrics-listen", "localhost:70000"}, `port "70000" is not a number from 0 to 65535`},
		"default runtime unknown":    {"", []string{"--runtime=kata=/k", "--default-runtime=crun"}, `--default-runtime: runtime.default: "crun" is not a runtime; there are kata`},
		"no runtime at all":          {"", []string{"--default-runtime=crun"}, `"crun" is not a runtime: none is configured or found on PATH`},
		"runtime without path":       {"", []string{"--runtime=kata"}, `"kata" is not NAME=PATH`},
		"runtime's name":             {"[runtime.paths]\nKata = \"/k\"", nil, `FILE:1: runtime.paths: "Kata" is not a RuntimeClass handler`},
		"runtime's relative path":    {"[runtime.paths]\nkata = \"k\"", nil, `FILE:1: runtime.paths: kata: "k" is not an absolute path`},
		"cgroup driver":              {"[cgroup]\ndriver = \"v2\"", nil, `FILE:2: cgroup.driver: "v2" is not cgroupfs or systemd`},
		"bridge name too long":       {"", []string{"--bridge", "a-name-of-16-cha"}, `is not a name for a network device`},
		"subnet with host bits":      {"", []string{"--subnet", "10.1.2.3/16"}, `"10.1.2.3/16" has bits of a host; the network is 10.1.0.0/16`},
		"two subnets of a family":    {"", []string{"--subnet=10.1.0.0/16", "--subnet=10.2.0.0/16"}, `"10.2.0.0/16" is a second network of its family`},
		"subnet too small":           {"", []string{"--subnet", "10.1.2.0/30"}, `"10.1.2.0/30" is too small for pods`},
		"no subnet":                  {"[network.builtin]\nsubnets = []", nil, `FILE:2: network.builtin.subnets: at least one network is needed`},
		"MTU too small for IPv6":     {"", []string{"--mtu", "576"}, `576 is not 0 or from 1280 to 65535`},
		"no layers at once":          {"", []string{"--parallel-layers", "0"}, `--parallel-layers: images.parallel_layers: 0 is not from 1 to 64`},
		"MTU is no number":           {"", []string{"--mtu", "big"}, `"big" is not a number`},
		"pinned image malformed":     {"", []string{"--pinned-image", "A B"}, `"A B" is not an image reference`},
		"log format":                 {"", []string{"--log-format", "xml"}, `"xml" is not text or json`},
		"all errors are told":        {"engine = \"x\"\nroot = \"y\"", nil, "FILE:2: root: \"y\" is not an absolute path\nFILE:1: engine"},
		"keeper is a relative path":  {"", []string{"--keeper", "bin/keeper"}, `--keeper: keeper.binary: "bin/keeper" is not an absolute path`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := load(t, nothing, tt.file, tt.args...)
			if err == nil {
				t.Fatal("no error")
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got  %s\nwant %s", err, tt.want)
			}
		})
	}
}

func TestNamedFileMustExist(t *testing.T) {
	set := pflag.NewFlagSet("test", pflag.ContinueOnError)
	flags := config.AddFlags(set)
	if err := set.Parse([]string{"--config", filepath.Join(t.TempDir(), "absent.toml")}); err != nil {
		t.Fatal(err)
	}
	if _, err := flags.Load(nothing); err == nil {
		t.Error("an absent file was accepted")
	}
}

func FuzzLoad(f *testing.F) {
	o := config.Default()
	text, err := o.TOML()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(text))
	f.Add("[network]\nmode = {a = [1, {b = \"\\u0000\"}]}\n[[network.builtin]]\n")
	f.Fuzz(func(t *testing.T, file string) {
		_, _ = load(t, nothing, file)
	})
}
