package config_test

import (
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"

	"gantry/internal/config"
)

// What is written from the options: the reference, and the configuration file of the packages.
const (
	referenceDoc = "../../docs/configuration.md"
	packagedFile = "../../packaging/config.toml"
)

const referenceHead = `# Configuration

` + "`gantry serve`" + ` reads ` + "`/etc/gantry/config.toml`" + `, or the file that ` + "`--config`" + ` names; a flag goes before the file, and
what neither gives has its default. A key that does not exist, or a value that is not legal, keeps the server from
starting: the error names file, line and key. ` + "`gantry config`" + ` prints what is in force, with the same comments.

After a change: ` + "`systemctl reload gantry`" + ` where the table says reload, else ` + "`systemctl restart gantry`" + `, which
touches no container. ` + "`crictl info`" + ` says whether what the file holds is in force.

| key | flag | default | change | |
|---|---|---|---|---|
`

const referenceTail = `
Beside these, for each registry ` + "`<images.certs_dir>/<host>/hosts.toml`" + ` as containerd reads it (mirrors, certificates), read
for each pull; the files in ` + "`network.cni_conf_dir`" + `, watched; and OpenTelemetry's variables in the server's environment.
`

const packagedHead = `# gantry's options, with their defaults where a line begins with "#". All of them, and what a change needs:
# /usr/share/doc/gantry/configuration.md. ` + "`gantry config`" + ` prints what is in force.

`

// packaged are the values of the packaged file that are no defaults: it is for machines with systemd.
var packaged = map[string]string{"cgroup.driver": "'systemd'"}

// field is an option as its struct field describes it.
type field struct{ table, key, value, comment string }

func (f field) name() string { return strings.TrimPrefix(f.table+"."+f.key, ".") }

// fields walks the options in the order of the file: a table's own keys come before its tables.
func fields(t *testing.T, v reflect.Value, table string) []field {
	t.Helper()
	var own, below []field
	for i := range v.NumField() {
		key, comment := v.Type().Field(i).Tag.Get("toml"), v.Type().Field(i).Tag.Get("comment")
		if v.Field(i).Kind() == reflect.Struct {
			below = append(below, fields(t, v.Field(i), strings.TrimPrefix(table+"."+key, "."))...)
			continue
		}
		value := "{}"
		if v.Field(i).Kind() != reflect.Map {
			text, err := toml.Marshal(map[string]any{"v": v.Field(i).Interface()})
			if err != nil {
				t.Fatal(err)
			}
			value = strings.TrimSpace(strings.TrimPrefix(string(text), "v = "))
		}
		own = append(own, field{table, key, value, comment})
	}
	return append(own, below...)
}

// golden compares text with a file, which -update rewrites.
func golden(t *testing.T, path, text string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil { //nolint:gosec // a document
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), text); diff != "" {
		t.Errorf("%s does not say what the options say; run `go test ./internal/config -update` (-file +options):\n%s", path, diff)
	}
}

func TestReferenceIsTrue(t *testing.T) {
	o := config.Default()
	var doc strings.Builder
	doc.WriteString(referenceHead)
	for _, f := range fields(t, reflect.ValueOf(o), "") {
		change := "restart"
		if config.Reloadable(f.name()) {
			change = "reload"
		}
		fmt.Fprintf(&doc, "| `%s` | `--%s` | `%s` | %s | %s |\n", f.name(), config.FlagOf(f.name()), f.value, change, strings.ReplaceAll(f.comment, "|", "\\|"))
	}
	doc.WriteString(referenceTail)
	golden(t, referenceDoc, doc.String())
}

func TestPackagedFileIsTrue(t *testing.T) {
	var doc strings.Builder
	doc.WriteString(packagedHead)
	table := ""
	for _, f := range fields(t, reflect.ValueOf(config.Default()), "") {
		if f.table != table {
			table = f.table
			fmt.Fprintf(&doc, "\n[%s]\n", table)
		}
		line := fmt.Sprintf("#%s = %s", f.key, f.value)
		if value, ok := packaged[f.name()]; ok {
			line = f.key + " = " + value
		}
		fmt.Fprintf(&doc, "# %s\n%s\n", f.comment, line)
	}
	golden(t, packagedFile, doc.String())

	want := config.Default()
	want.Cgroup.Driver = "systemd"
	want.Resolve(nothing)
	for what, text := range map[string]string{
		"as it is": doc.String(), "with every line in force": inForce(doc.String()),
	} {
		got, err := load(t, nothing, text)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if diff := cmp.Diff(&want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
	}
}

// inForce takes the sign of a comment from lines that hold a key.
func inForce(text string) string {
	var out strings.Builder
	for line := range strings.Lines(text) {
		if len(line) > 1 && line[0] == '#' && line[1] != ' ' {
			line = line[1:]
		}
		out.WriteString(line)
	}
	return out.String()
}
