package bench

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// Machine is what a measurement ran on.
type Machine struct {
	CPU     string `json:"cpu"`
	CPUs    int    `json:"cpus"`
	Memory  int64  `json:"memoryMiB"`
	Kernel  string `json:"kernel"`
	Cgroups string `json:"cgroups"` // "v1" or "v2"
}

// ThisMachine describes the machine that the process runs on; what cannot be read stays empty.
func ThisMachine() Machine {
	m := Machine{CPUs: runtime.NumCPU(), Cgroups: "v1"}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		m.Cgroups = "v2"
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		m.Memory = int64(info.Totalram) * int64(info.Unit) >> 20
	}
	data, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(data)) {
		if key, value, _ := strings.Cut(line, ":"); strings.TrimSpace(key) == "model name" {
			m.CPU = strings.TrimSpace(value)
			break
		}
	}
	return m
}

// Report is a whole measurement.
type Report struct {
	Machine Machine   `json:"machine"`
	When    time.Time `json:"when"`
	Took    string    `json:"took"`
	Foreign float64   `json:"foreignCPUs"` // that others, and kernel threads, kept busy meanwhile
	Notes   []string  `json:"notes,omitempty"`
	Goals   []Goal    `json:"goals,omitempty"`
	Rows    []Row     `json:"rows"`
}

// Limit is the runtime's name in rows that tell what the kernel, or an OCI runtime alone, needs.
const Limit = "limit"

// introduction begins the report in Markdown.
const introduction = `# What runtimes cost

Measured by ` + "`make bench`" + ` on %s, in %s, on %d CPUs (%s), %d MiB of memory, Linux %s, cgroup %s.
Others, and kernel threads, kept %.2f CPUs busy meanwhile. Runtimes took turns. A figure is the median, with the tenth and
ninetieth percentile below; the ratio is gantry's part of it. A *limit* is the nearest thing that the kernel, or an
OCI runtime alone, can do, measured on its own.

Every runtime has a cgroup and namespaces of its own. *CPU time* is that of the whole cgroup: of the daemon, its helpers, shims,
plugins and OCI runtimes, and of the pods. Images come by plain HTTP from a registry in the benchmark's process, which counts for nobody.
gantry syncs an image to the disk before it says that it is there, as it does when installed; its peers do not, so *gantry, no sync*
stands beside them. Peers run with their own defaults but for paths, the network (CNI's bridge, host-local and portmap) and NRI, which is
off there; CRI-O runs crun as gantry does, containerd and Docker run runc. ` + "`make docker-tools`" + ` and Debian's containerd package add their columns; what is not
there is left out and named. ` + "`make bench QUICK=1`" + ` takes a quarter of an hour, the whole an hour and a quarter at most, and
` + "`make bench PARTS=life,pull`" + ` measures a part.

## Your own runtime, on your own machine

` + "`gantry bench`" + ` measures any runtime that speaks CRI v1, where it runs, with the configuration it has:

    gantry bench --endpoint unix:///run/containerd/containerd.sock --image docker.io/library/busybox:latest

It needs root, a runtime that is ready with its network (` + "`crictl info`" + ` says so), and an image with a shell, ` + "`sleep`" + ` and ` + "`true`" + `,
which is pulled if it is not there. Nothing of gantry has to run. Its pods are named ` + "`bench-N`" + ` in the namespace ` + "`bench`" + ` and are removed at
the end: pods that run already stay as they are, but what they do spoils the figures. For CPU time and memory name the cgroup that
the runtime, its helpers and the pods run in, with ` + "`--cgroup`" + ` and ` + "`--cgroup-parent`" + `. ` + "`--pods 0`" + ` leaves out lists at many pods,
` + "`--host-network`" + ` the network, and ` + "`--json`" + ` prints what a program can read. A call that the runtime does not answer is named in a note;
containerd knows statistics of pods only where their cgroup has a parent, as the kubelet gives it: add ` + "`--cgroup-parent /bench`" + `,
or a slice where its cgroup driver is systemd's.
`

// Files are the report as JSON, as Markdown, and as plots that the Markdown shows, by file name.
func (r *Report) Files() (map[string][]byte, error) {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode the report: %w", err)
	}
	files := map[string][]byte{"results.json": append(data, '\n')}
	var md bytes.Buffer
	fmt.Fprintf(&md, introduction, r.When.Format("2 January 2006"), r.Took, r.Machine.CPUs, r.Machine.CPU, r.Machine.Memory,
		r.Machine.Kernel, r.Machine.Cgroups, r.Foreign)
	for _, n := range r.Notes {
		fmt.Fprintf(&md, "\n%s\n", n)
	}
	if len(r.Goals) > 0 {
		fmt.Fprint(&md, "\n## Goals\n\n")
		goalTable(&md, r.Goals)
	}
	for i, where := range unique(r.Rows, func(x Row) string { return x.Case }) {
		rows := slices.DeleteFunc(slices.Clone(r.Rows), func(x Row) bool { return x.Case != where })
		fmt.Fprintf(&md, "\n## %s\n\n", capital(where))
		markdown(&md, rows)
		if svg := plot(where, rows); svg != nil {
			name := fmt.Sprintf("plot-%02d.svg", i+1)
			files[name] = svg
			fmt.Fprintf(&md, "\n![%s](%s)\n", where, name)
		}
	}
	files["README.md"] = md.Bytes()
	return files, nil
}

// grid arranges rows as a line for each metric and a column for each runtime.
func grid(rows []Row) (metrics, names []string, cell func(metric, name string) (Row, bool)) {
	metrics = unique(rows, func(x Row) string { return x.Metric })
	names = unique(rows, func(x Row) string { return x.Name })
	return metrics, names, func(metric, name string) (Row, bool) {
		i := slices.IndexFunc(rows, func(x Row) bool { return x.Metric == metric && x.Name == name })
		if i < 0 {
			return Row{}, false
		}
		return rows[i], true
	}
}

// Subject is the runtime that others are compared with.
const Subject = "gantry"

func markdown(w io.Writer, rows []Row) {
	metrics, names, cell := grid(rows)
	fmt.Fprintf(w, "| | unit | %s |\n|---|---|%s\n", strings.Join(names, " | "), strings.Repeat("---|", len(names)))
	for _, m := range metrics {
		var cells []string
		unit := ""
		own, compared := cell(m, Subject)
		for _, n := range names {
			r, ok := cell(m, n)
			if !ok {
				cells = append(cells, "–")
				continue
			}
			unit = r.Unit
			text := "**" + figureText(r.Median) + "**"
			if r.N > 1 {
				text += "<br>" + figureText(r.Low) + "–" + figureText(r.High)
			}
			if compared && n != Subject && r.Median > 0 {
				text += fmt.Sprintf("<br>×%.2f", own.Median/r.Median)
			}
			cells = append(cells, text)
		}
		fmt.Fprintf(w, "| %s | %s | %s |\n", m, unit, strings.Join(cells, " | "))
	}
}

// Table writes rows as text, the cases one after the other.
func Table(w io.Writer, all []Row) error {
	for _, where := range unique(all, func(x Row) string { return x.Case }) {
		rows := slices.DeleteFunc(slices.Clone(all), func(x Row) bool { return x.Case != where })
		metrics, names, cell := grid(rows)
		tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintf(tw, "%s\tUNIT\t%s\n", strings.ToUpper(where), strings.ToUpper(strings.Join(names, "\t")))
		for _, m := range metrics {
			line, unit := "", ""
			for _, n := range names {
				r, ok := cell(m, n)
				if !ok {
					line += "\t-"
					continue
				}
				unit = r.Unit
				line += "\t" + figureText(r.Median)
				if r.N > 1 {
					line += " (" + figureText(r.Low) + "-" + figureText(r.High) + ")"
				}
			}
			fmt.Fprintf(tw, "%s\t%s%s\n", m, unit, line)
		}
		fmt.Fprintln(tw)
		if err := tw.Flush(); err != nil {
			return err
		}
	}
	return nil
}

// figureText has three digits that mean something.
func figureText(v float64) string {
	switch {
	case v == 0:
		return "0"
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	case v >= 0.1:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.3f", v)
}

func capital(s string) string { return strings.ToUpper(s[:1]) + s[1:] }
