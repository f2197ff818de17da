package resclass_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"gantry/internal/resclass"
)

const blockioFile = `Classes:
  slow:
  - Weight: 50
  fast:
  - Weight: 500
`

// tree is what the kernel shows of RDT: classes are directories.
func tree(t *testing.T, classes ...string) string {
	t.Helper()
	root := t.TempDir()
	for _, dir := range append([]string{"", "info"}, classes...) {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, dir, "schemata"), []byte("L3:0=fffff\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func file(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "classes.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestClassesOfContainers(t *testing.T) {
	const blockio, rdt = "blockio.resources.beta.kubernetes.io/", "rdt.resources.beta.kubernetes.io/"
	everything := resclass.Options{BlockIOFile: file(t, blockioFile), ResctrlRoot: tree(t, "gold", "silver")}
	for rule, c := range map[string]struct {
		opts  resclass.Options
		of    resclass.Container
		want  resclass.Found
		class func(error) bool // nil: no error
		names string           // what the error says
	}{
		"no class asked for, none there": {of: resclass.Container{}},
		"one of the pod's": {opts: everything, of: resclass.Container{HasIO: true, PodAnnotations: map[string]string{blockio + "pod": "slow", rdt + "pod": "gold"}},
			want: resclass.Found{BlockIO: "slow", RDT: "gold"}},
		"the container's wins": {opts: everything, of: resclass.Container{HasIO: true, Name: "main", PodAnnotations: map[string]string{
			blockio + "pod": "slow", blockio + "container.main": "fast", rdt + "pod": "gold", rdt + "container.main": "silver",
		}}, want: resclass.Found{BlockIO: "fast", RDT: "silver"}},
		"another container's does not": {opts: everything, of: resclass.Container{Name: "main", PodAnnotations: map[string]string{blockio + "container.side": "fast"}}},
		"one of the CRI's": {opts: everything, of: resclass.Container{HasIO: true, Annotations: map[string]string{"io.kubernetes.cri.blockio-class": "fast", "io.kubernetes.cri.rdt-class": "gold"}},
			want: resclass.Found{BlockIO: "fast", RDT: "gold"}},
		"a plugin's wins over annotations": {opts: everything, of: resclass.Container{HasIO: true, BlockIO: ptr("fast"), RDT: ptr("silver"),
			PodAnnotations: map[string]string{blockio + "pod": "slow", rdt + "pod": "gold"}}, want: resclass.Found{BlockIO: "fast", RDT: "silver"}},
		"a plugin takes a class away": {opts: everything, of: resclass.Container{HasIO: true, BlockIO: ptr(""), RDT: ptr(""),
			PodAnnotations: map[string]string{blockio + "pod": "slow", rdt + "pod": "gold"}}},
		"blockio without a file": {of: resclass.Container{HasIO: true, PodAnnotations: map[string]string{blockio + "pod": "slow"}},
			class: errdefs.IsFailedPrecondition, names: "slow"},
		"blockio without a controller": {opts: everything, of: resclass.Container{PodAnnotations: map[string]string{blockio + "pod": "slow"}},
			class: errdefs.IsFailedPrecondition, names: "controller"},
		"blockio that nobody knows": {opts: everything, of: resclass.Container{HasIO: true, PodAnnotations: map[string]string{blockio + "pod": "none"}},
			class: errdefs.IsInvalidArgument, names: "fast"},
		"rdt without the kernel's": {opts: resclass.Options{ResctrlRoot: t.TempDir()}, of: resclass.Container{PodAnnotations: map[string]string{rdt + "pod": "gold"}},
			class: errdefs.IsFailedPrecondition, names: "no RDT"},
		"rdt that nobody knows": {opts: everything, of: resclass.Container{PodAnnotations: map[string]string{rdt + "pod": "lead"}},
			class: errdefs.IsInvalidArgument, names: "lead"},
		"rdt that leads elsewhere": {opts: everything, of: resclass.Container{PodAnnotations: map[string]string{rdt + "pod": "../gold"}},
			class: errdefs.IsInvalidArgument, names: "no name"},
		"rdt that is no class": {opts: everything, of: resclass.Container{PodAnnotations: map[string]string{rdt + "pod": "info"}},
			class: errdefs.IsInvalidArgument, names: "no name"},
		"rdt from a file that can't be in force": {opts: resclass.Options{RDTFile: file(t, "options: {}"), ResctrlRoot: tree(t, "gold")},
			of: resclass.Container{PodAnnotations: map[string]string{rdt + "pod": "gold"}}, class: errdefs.IsFailedPrecondition, names: "gold"},
	} {
		t.Run(rule, func(t *testing.T) {
			classes, err := resclass.Load(c.opts)
			if err != nil {
				t.Fatal(err)
			}
			spec := &specs.Linux{}
			got, err := classes.Apply(&c.of, spec)
			if c.class != nil {
				if !c.class(err) || !strings.Contains(err.Error(), c.names) {
					t.Errorf("%v; want another class, or that it says %q", err, c.names)
				}
				return
			}
			if err != nil || got != c.want {
				t.Fatalf("%+v, %v; want %+v", got, err, c.want)
			}
			if (spec.IntelRdt != nil) != (got.RDT != "") || spec.IntelRdt != nil && spec.IntelRdt.ClosID != got.RDT {
				t.Errorf("the spec's RDT is %+v", spec.IntelRdt)
			}
			weights := map[string]uint16{"slow": 50, "fast": 500}
			if got.BlockIO != "" && *spec.Resources.BlockIO.Weight != weights[got.BlockIO] {
				t.Errorf("the weight is %d", *spec.Resources.BlockIO.Weight)
			}
		})
	}
}

func ptr(s string) *string { return &s }

func TestFileThatCannotBeUsed(t *testing.T) {
	for rule, path := range map[string]string{
		"absent": filepath.Join(t.TempDir(), "none"), "no YAML": file(t, "{"), "an unknown field": file(t, "Class: {}"),
		"a weight that is none": file(t, "Classes: {slow: [{Weight: lots}]}"),
	} {
		t.Run(rule, func(t *testing.T) {
			if _, err := resclass.Load(resclass.Options{BlockIOFile: path}); err == nil {
				t.Error("it was loaded")
			}
		})
	}
}
