package bench

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// LimitCase is the case of what was measured alone.
const LimitCase = "the nearest limits, measured alone"

// What is measured alone and compared with goals.
const (
	LimitNamespace = "network namespace: make and pin"
	LimitVeth      = "veth pair into it"
	LimitCreate    = "crun create" + OnReadOnly
	LimitExec      = "crun exec" + OnReadOnly
	LimitOverlay   = "overlay: mount and unmount"
	LimitUnpin     = "network namespace: unpin"
	LimitADD       = "CNI plugins bridge, host-local and portmap: ADD"
	LimitCNICPU    = "CNI plugins bridge, host-local and portmap: CPU time of ADD and DEL"
	LimitKill      = "the one process of a PID namespace: kill until it is gone"
	LimitPipe      = "pipe to file"
	LimitPipeCPU   = "pipe to file, CPU time"
	LimitList      = "a gRPC answer with 100 containers"
	LimitStatus    = "a gRPC answer with one container's status"
	LimitVersion   = "a gRPC answer of a few bytes"
	LimitStats     = "the cgroup files of 100 pods and their containers: read, already open"
	LimitServer    = "a gRPC server that only answers"
	LimitHelper    = "a process a pod that sleeps, of 100"
)

// PlainPull is the work of a pull without a runtime.
const PlainPull = "the plain work of it all, two layers at a time"

// BigPull is the pull that a goal speaks of.
const BigPull = "pull of 300 MiB, 9 layers"

// LogCase is the log that a goal speaks of.
const LogCase = "log of 200 MB, lines of 100 bytes"

// Goal is a figure that gantry is to reach.
type Goal struct {
	Figure  string  `json:"figure"`
	Unit    string  `json:"unit"`
	Value   float64 `json:"value"`
	Bounds  []Bound `json:"bounds"`
	Limit   float64 `json:"limit"`   // the nearest that the kernel, or an OCI runtime alone, can do
	LimitOf string  `json:"limitOf"` // what it is the sum of; "" if it was not measured
}

// Bound is the most that a figure may be, or the least.
type Bound struct {
	Value   float64 `json:"value"`
	Least   bool    `json:"least,omitempty"`
	Of      string  `json:"of,omitempty"` // of whose figure in the same run it is a part
	Reached bool    `json:"reached"`
}

// LifeCase is the case of pods' lives on a network, as many at once as there are workers.
func LifeCase(network string, workers int) string {
	if workers == 1 {
		return "a pod's life, " + network + " network"
	}
	return fmt.Sprintf("pods' lives, %d at once, %s network", workers, network)
}

// goalWorkers is how many pods live at once where a goal speaks of it.
const goalWorkers = 8

// wish is a goal before it is measured.
type wish struct {
	where, metric string
	of            string // "" is Subject
	bounds        []part
	limits        []string // metrics of LimitCase to add up
}

// part is a bound: times a figure of somebody else, or of nobody.
type part struct {
	times float64
	name  string // a peer or Limit; "" makes times the bound itself
	where string // "" is the case of the wish
	what  string // the metric; "" is that of the wish
}

// OnReadOnly follows the name of a command of crun where its program lies so that it executes once, as gantry has it do.
const OnReadOnly = ", its program on a read-only mount"

// crunCPU is what a life cannot do without. A start and a removal need no process.
var crunCPU = []string{LimitCreate + CPUTime, LimitExec + CPUTime}

// CPUTime follows the name of what took it.
const CPUTime = ", its CPU time"

func lifeWishes() []wish {
	alone := func(network string) string { return LifeCase(network, 1) }
	peers := func(network string, containerd, crio float64) []part {
		return []part{{times: containerd, name: "containerd", where: alone(network)}, {times: crio, name: "CRI-O", where: alone(network)}}
	}
	own := alone("builtin")
	return []wish{
		{where: own, metric: "Run+Create+Start", bounds: peers("cni", 0.25, 0.35),
			limits: []string{LimitNamespace, LimitVeth, LimitOverlay, LimitCreate}},
		{where: alone("cni"), metric: "Run+Create+Start", bounds: peers("cni", 0.5, 0.75),
			limits: []string{LimitNamespace, LimitADD, LimitOverlay, LimitCreate}},
		{where: alone("host"), metric: "Run+Create+Start", bounds: peers("host", 0.3, 0.6), limits: []string{LimitOverlay, LimitCreate}},
		{where: own, metric: "ExecSync", limits: []string{LimitExec}, bounds: []part{
			{times: 1.25, name: Limit, where: LimitCase, what: "crun exec"}, {times: 1, name: "CRI-O", where: alone("cni")},
			{times: 0.3, name: "containerd", where: alone("cni")},
		}},
		{where: own, metric: "StopContainer", bounds: []part{{times: 5}}, limits: []string{LimitKill}},
		{where: own, metric: "Stop+Remove sandbox", bounds: []part{{times: 10}}, limits: []string{LimitUnpin}},
		{where: own, metric: "CPU of a life", bounds: []part{{times: 50}}, limits: crunCPU},
	}
}

func restWishes() []wish {
	const crowd = "100 pods"
	pull := func(of, limit string) wish {
		return wish{where: BigPull, metric: PullTime, of: of, bounds: []part{{times: 2. / 3, name: "containerd"}}, limits: []string{BigPull + ": " + limit}}
	}
	return []wish{
		{where: crowd, metric: "helpers, a pod", bounds: []part{{times: 150}}, limits: []string{LimitHelper}},
		{where: crowd, metric: "daemon", bounds: []part{{times: 40}}, limits: []string{LimitServer}},
		{where: crowd, metric: "idle CPU", bounds: []part{{times: 0.1}}},
		{where: crowd, metric: "ListContainers", bounds: []part{{times: 0.4}}, limits: []string{LimitList}},
		{where: crowd, metric: "ContainerStatus", bounds: []part{{times: 0.1}}, limits: []string{LimitStatus}},
		{where: crowd, metric: "ListPodSandboxStats", bounds: []part{{times: 10}}, limits: []string{LimitStats}},
		{where: LogCase, metric: "until the last line", bounds: []part{{times: 1, name: "CRI-O"}}, limits: []string{LimitPipe}},
		{where: LogCase, metric: "CPU time", bounds: []part{{times: 0.4}}, limits: []string{LimitPipeCPU}},
		pull("", PlainPull), pull(Subject+", no sync", PlainPull+", no sync"),
	}
}

// Judge returns the goals whose figures were measured, on that many CPUs. A bound that is a part of what was
// not measured is left out.
func Judge(rows []Row, cpus int) []Goal {
	var goals []Goal
	all := lifeWishes()
	for _, w := range all[:3] {
		goals = w.judge(rows, goals)
	}
	for _, network := range []struct {
		name  string
		times float64
		cpu   []string
	}{{"builtin", 4, crunCPU}, {"cni", 2, append(slices.Clone(crunCPU), LimitCNICPU)}} {
		w := wish{where: LifeCase(network.name, goalWorkers), metric: "pods a second",
			bounds: []part{{times: network.times, name: "containerd", where: LifeCase("cni", goalWorkers)}}}
		before := len(goals)
		goals = w.judge(rows, goals)
		if cost, of := total(rows, network.cpu); len(goals) > before && cost > 0 {
			g := &goals[before]
			g.Limit, g.LimitOf = float64(cpus)*1000/cost, fmt.Sprintf("%d CPUs with nothing to do but %s", cpus, of)
		}
	}
	for _, w := range slices.Concat(all[3:], restWishes()) {
		goals = w.judge(rows, goals)
	}
	return goals
}

// judge appends what became of a wish to goals, if its figure was measured.
func (w *wish) judge(rows []Row, goals []Goal) []Goal {
	of := w.of
	if of == "" {
		of = Subject
	}
	own, ok := find(rows, w.where, w.metric, of)
	if !ok {
		return goals
	}
	g := Goal{Figure: w.metric + ", " + w.where, Unit: own.Unit, Value: own.Median}
	if w.of != "" {
		g.Figure += ", of " + w.of
	}
	least := own.Unit == "1/s"
	for _, p := range w.bounds {
		b := Bound{Value: p.times, Least: least}
		if p.name != "" {
			where, what := p.where, p.what
			if where == "" {
				where = w.where
			}
			if what == "" {
				what = w.metric
			}
			other, measured := find(rows, where, what, p.name)
			if !measured {
				continue
			}
			b.Value, b.Of = p.times*other.Median, fmt.Sprintf("%s × %s of %s", timesText(p.times), figureText(other.Median), other.Name)
			if p.name == Limit {
				b.Of = fmt.Sprintf("%s × %s of %s", timesText(p.times), figureText(other.Median), what)
			}
		}
		b.Reached = g.Value <= b.Value
		if least {
			b.Reached = g.Value >= b.Value
		}
		g.Bounds = append(g.Bounds, b)
	}
	g.Limit, g.LimitOf = total(rows, w.limits)
	return append(goals, g)
}

// total adds up medians of what was measured alone; of is empty if one of them was not.
func total(rows []Row, metrics []string) (sum float64, of string) {
	for _, m := range metrics {
		r, ok := find(rows, LimitCase, m, Limit)
		if !ok {
			return 0, ""
		}
		sum += r.Median
	}
	return sum, strings.Join(metrics, " + ")
}

// find returns the row of a runtime, whose name in rows may end in its version.
func find(rows []Row, where, metric, name string) (Row, bool) {
	i := slices.IndexFunc(rows, func(r Row) bool {
		return r.Case == where && r.Metric == metric && (r.Name == name || name != Subject && strings.HasPrefix(r.Name, name+" "))
	})
	if i < 0 {
		return Row{}, false
	}
	return rows[i], true
}

// timesText is a part as one says it.
func timesText(v float64) string {
	return strings.TrimSuffix(strings.TrimRight(fmt.Sprintf("%.2f", v), "0"), ".")
}

// goalTable writes the goals as Markdown.
func goalTable(w io.Writer, goals []Goal) {
	fmt.Fprint(w, "| figure | unit | gantry | goal | reached | nearest limit |\n|---|---|---|---|---|---|\n")
	for _, g := range goals {
		var wanted, reached []string
		for _, b := range g.Bounds {
			sign, word := "≤", "**no**"
			if b.Least {
				sign = "≥"
			}
			if b.Reached {
				word = "yes"
			}
			text := sign + " " + figureText(b.Value)
			if b.Of != "" {
				text += " (" + b.Of + ")"
			}
			wanted, reached = append(wanted, text), append(reached, word)
		}
		if len(wanted) == 0 {
			wanted, reached = []string{"–"}, []string{"–"}
		}
		limit := "0: nothing needs to run"
		if g.LimitOf != "" {
			limit = figureText(g.Limit) + ": " + g.LimitOf
		} else if g.Unit != "%" {
			limit = "–"
		}
		fmt.Fprintf(w, "| %s | %s | **%s** | %s | %s | %s |\n", g.Figure, g.Unit, figureText(g.Value),
			strings.Join(wanted, "<br>"), strings.Join(reached, "<br>"), limit)
	}
}
