package arch_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gantry/internal/arch"
)

const internal = "gantry/internal/"

// testOnly are the packages that no shipped binary may contain and that stand on no floor.
var testOnly = []string{"arch", "lab", "labdocker", "labimage", "shape"}

// assembled are the packages whose values only the assembler may build: everyone else gets them
// as an interface, so that an engine or a network is swapped in one place.
var assembled = []string{"engine/native", "daemon"}

type listed struct {
	ImportPath string
	Imports    []string
	Deps       []string
}

func TestPackagesImportOnlyFloorsBelow(t *testing.T) {
	floors := readFloors(t)
	for _, p := range list(t, "./internal/...") {
		name := strings.TrimPrefix(p.ImportPath, internal)
		if slices.Contains(testOnly, name) {
			continue
		}
		floor, ok := floors[name]
		if !ok {
			t.Errorf("%s stands on no floor of ARCHITECTURE.md", name)
			continue
		}
		for _, imported := range internals(p.Imports) {
			if below, ok := floors[imported]; ok && below >= floor {
				t.Errorf("%s (floor %d) imports %s (floor %d)", name, floor, imported, below)
			}
		}
	}
}

func TestEveryPackageOfTheTableExists(t *testing.T) {
	var have []string
	for _, p := range list(t, "./internal/...") {
		have = append(have, strings.TrimPrefix(p.ImportPath, internal))
	}
	for _, name := range slices.Sorted(maps.Keys(readFloors(t))) {
		if !slices.Contains(have, name) {
			t.Errorf("ARCHITECTURE.md names internal/%s, which does not exist", name)
		}
	}
}

func TestOnlyCommandsAndDaemonAssemble(t *testing.T) {
	for _, p := range list(t, "./internal/...", "./cmd/...") {
		name := strings.TrimPrefix(p.ImportPath, internal)
		if name == "daemon" || strings.HasPrefix(p.ImportPath, "gantry/cmd/") {
			continue
		}
		for _, imported := range internals(p.Imports) {
			if slices.Contains(assembled, imported) {
				t.Errorf("%s imports %s: only cmd/ and internal/daemon assemble", name, imported)
			}
		}
	}
}

func TestShippedBinariesContainNoTestPackages(t *testing.T) {
	forbidden := append(slices.Clone(testOnly), "engine/fake", "engine/enginetest")
	for _, p := range list(t, "./cmd/...") {
		for _, dep := range internals(p.Deps) {
			if slices.Contains(forbidden, dep) {
				t.Errorf("%s contains %s", p.ImportPath, dep)
			}
		}
		if slices.Contains(p.Deps, "testing") {
			t.Errorf("%s contains package testing", p.ImportPath)
		}
	}
}

// A test that sleeps in real time is slow where it sleeps too long and fails where it sleeps too short.
func TestTestsSleepOnlyInBubbles(t *testing.T) {
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && strings.HasPrefix(d.Name(), ".") && d.Name() != ".." {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		bubbles := slices.ContainsFunc(file.Imports, func(i *ast.ImportSpec) bool { return i.Path.Value == `"testing/synctest"` })
		if !bubbles && sleeps(file) {
			t.Errorf("%s sleeps outside a testing/synctest bubble", path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func sleeps(file *ast.File) (found bool) {
	ast.Inspect(file, func(n ast.Node) bool {
		if call, ok := n.(*ast.SelectorExpr); ok && call.Sel.Name == "Sleep" {
			pkg, _ := call.X.(*ast.Ident)
			found = found || pkg != nil && pkg.Name == "time"
		}
		return !found
	})
	return found
}

func TestReadFloors(t *testing.T) {
	for _, tc := range []struct {
		name, markdown, wantErr string
		want                    arch.Floors
	}{
		{
			name:     "packages of one row share a floor",
			markdown: "| floor | packages |\n|---|---|\n| 0 | pod, keylock | nouns |\n| 1 | cni |\n",
			want:     arch.Floors{"pod": 0, "keylock": 0, "cni": 1},
		},
		{
			name:     "other tables are passed over",
			markdown: "| file | owner |\n|---|---|\n| x | y |\n\n| floor | packages |\n|---|---|\n| 2 | store |\n",
			want:     arch.Floors{"store": 2},
		},
		{name: "no table is an error", markdown: "# nothing\n", wantErr: "no table"},
		{name: "a floor is a number", markdown: "| floor | p |\n| top | daemon |\n", wantErr: `floor "top"`},
		{name: "a package has one floor", markdown: "| floor | p |\n| 0 | pod |\n| 1 | pod |\n", wantErr: "two floors"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := arch.ReadFloors(strings.NewReader(tc.markdown))
			if tc.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tc.wantErr) {
					t.Fatalf("error %v, want one with %q", err, tc.wantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !maps.Equal(got, tc.want) {
				t.Errorf("floors %v, want %v", got, tc.want)
			}
		})
	}
}

func readFloors(t *testing.T) arch.Floors {
	t.Helper()
	f, err := os.Open("../../ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	floors, err := arch.ReadFloors(f)
	if err != nil {
		t.Fatal(err)
	}
	return floors
}

// list asks the go command for packages and what they import, tests left out.
func list(t *testing.T, patterns ...string) []listed {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list", "-json=ImportPath,Imports,Deps"}, patterns...)...)
	cmd.Dir = "../.."
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, &stderr)
	}
	var all []listed
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		switch err := dec.Decode(&p); {
		case errors.Is(err, io.EOF):
			return all
		case err != nil:
			t.Fatalf("go list: %v", err)
		}
		all = append(all, p)
	}
}

// internals returns those of paths that are internal packages, named as below internal/.
func internals(paths []string) []string {
	var names []string
	for _, p := range paths {
		if name, ok := strings.CutPrefix(p, internal); ok {
			names = append(names, name)
		}
	}
	return names
}

// docs/security.md promises a test for each line; this is what it names.
func TestSecurityNamesTestsThatExist(t *testing.T) {
	text, err := os.ReadFile("../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	for _, dir := range []string{"..", "../../test"} {
		err = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, "_test.go") {
				return err
			}
			data, err := os.ReadFile(path)
			for _, found := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllSubmatch(data, -1) {
				there[string(found[1])] = true
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range regexp.MustCompile("`(Test\\w+)`").FindAllSubmatch(text, -1) {
		if !there[string(name[1])] {
			t.Errorf("docs/security.md names %s, which is no test", name[1])
		}
	}
}
