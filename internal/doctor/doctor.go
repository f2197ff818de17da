// Package doctor looks at a node and says what keeps gantry from working well there and how to mend
// it. It changes nothing: what it mounts to try something out is gone when it returns.
package doctor

import (
	"context"
	"os"
	"path/filepath"
	"strings"

	"gantry/internal/config"
	"gantry/internal/nri"
)

// Level is how bad a finding is.
type Level string

// The levels. A node with a Fail cannot run pods as it is configured; a Warn has a price that the
// finding names.
const (
	OK   Level = "ok"
	Warn Level = "warn"
	Fail Level = "fail"
)

// Finding is what one check found.
type Finding struct {
	Check   string `json:"check"`
	Level   Level  `json:"level"`
	Message string `json:"message"`
	Mend    string `json:"mend,omitempty"` // how to make it better; "" when nothing is to be done
}

// Options say what to look at.
type Options struct {
	Config *config.Options
	// Registries are hosts that must be reachable.
	Registries []string
	// Server asks the running server; nil leaves that check out.
	Server func(context.Context) (*Server, error)
	// Root is where / is, for checks that only read files: another directory in tests; "" is "/".
	Root string
}

// Server is what a running server says about itself. A nil error means ready.
type Server struct {
	Version string
	Runtime error
	Network error
	Plugins []nri.Plugin // that are connected, and that were lost
}

// node is what the checks look at.
type node struct {
	Options
}

type check struct {
	name string
	run  func(context.Context, *node) []Finding
}

// Run makes all checks. Findings come in a fixed order; a check has at least one.
func Run(ctx context.Context, o Options) []Finding {
	return run(ctx, o, append(fileChecks(), liveChecks()...))
}

// Inspect makes the checks that only read files below Root.
func Inspect(ctx context.Context, o Options) []Finding { return run(ctx, o, fileChecks()) }

func run(ctx context.Context, o Options, checks []check) []Finding {
	n := &node{o}
	var all []Finding
	for _, c := range checks {
		for _, f := range c.run(ctx, n) {
			f.Check = c.name
			all = append(all, f)
		}
	}
	return all
}

// Worst is the highest level among the findings.
func Worst(all []Finding) Level {
	worst := OK
	for _, f := range all {
		if f.Level == Fail || f.Level == Warn && worst == OK {
			worst = f.Level
		}
	}
	return worst
}

func fileChecks() []check {
	return []check{
		{"kernel", checkKernel},
		{"namespaces", checkNamespaces},
		{"privileges", checkPrivileges},
		{"limits", checkLimits},
		{"cgroup", checkCgroup},
		{"seccomp", checkSeccomp},
		{"lsm", checkLSM},
	}
}

func liveChecks() []check {
	return []check{
		{"storage", checkOverlay},
		{"quotas", checkQuotas},
		{"state", checkState},
		{"runtimes", checkRuntimes},
		{"keeper", checkKeeper},
		{"docker", checkDocker},
		{"network", checkNetwork},
		{"registries", checkRegistries},
		{"server", checkServer},
	}
}

// read returns a file's text without the final newline, "" when it is not there.
func (n *node) read(path string) string {
	data, err := os.ReadFile(filepath.Join("/", n.Root, path))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

func (n *node) exists(path string) bool {
	_, err := os.Lstat(filepath.Join("/", n.Root, path))
	return err == nil
}

func one(level Level, message, mend string) []Finding {
	return []Finding{{Level: level, Message: message, Mend: mend}}
}

func checkServer(ctx context.Context, n *node) []Finding {
	if n.Server == nil {
		return nil
	}
	s, err := n.Server(ctx)
	if err != nil {
		return one(Warn, "no server answers: "+err.Error(), "start it: gantry serve")
	}
	found := one(OK, s.Version+" answers", "")
	if s.Runtime != nil {
		found = append(found, Finding{Level: Fail, Message: "RuntimeReady is false: " + s.Runtime.Error()})
	}
	if s.Network != nil {
		found = append(found, Finding{Level: Fail, Message: "NetworkReady is false: " + s.Network.Error()})
	}
	return append(found, plugins(s.Plugins)...)
}

// plugins says which NRI plugins have a say in pods, and which have it no more.
func plugins(all []nri.Plugin) []Finding {
	var found []Finding
	connected := make(map[string]bool)
	for _, p := range all { // the connected ones come first
		switch {
		case p.Lost.IsZero():
			connected[p.Name] = true
			found = append(found, Finding{Level: OK, Message: "NRI plugin " + p.Name + " is connected"})
		case !connected[p.Name]:
			found = append(found, Finding{
				Level: Warn, Message: "NRI plugin " + p.Name + " is gone, pods start without it: " + p.Reason,
				Mend: "look at the plugin's own log and start it again; one of nri.plugin_dir starts with the server",
			})
		}
	}
	return found
}
