// Package shape keeps formats from changing unnoticed. What a process writes as JSON its successor reads
// after an upgrade, and its predecessor after that is taken back: for both, a field may be added, and none
// may change its type or go. A package's test hands over its types; what they looked like is kept in
// generations below testdata, each with a sample. A release has one of its own, unless nothing changed.
//
//	testdata/formats/<n>/shape.txt      a line for each field: its path, its kind
//	testdata/formats/<n>/<name>.json    every type with every field set
package shape

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("new-generation", false, "write today's formats as a new generation")

// Check fails the test when today's types, pointers to their zero values by name, have lost or changed a
// field that a generation has, or cannot read every sample whole. With -new-generation it writes one.
func Check(t *testing.T, types map[string]any) {
	t.Helper()
	const dir = "testdata/formats"
	all := generations(t, dir)
	today := shapes(types)
	if len(all) == 0 || *update && !slices.Equal(today, read(t, dir, all[len(all)-1])) {
		next := strconv.Itoa(len(all) + 1)
		write(t, filepath.Join(dir, next), today, types)
		all = append(all, next)
	}
	if more := missing(today, read(t, dir, all[len(all)-1])); len(more) > 0 {
		t.Logf("no sample has %q: run this test with -new-generation before a release", more)
	}
	for _, generation := range all {
		for _, line := range missing(read(t, dir, generation), today) {
			t.Errorf("generation %s has %q, today's format has not: neither can read the other", generation, line)
		}
		for name, v := range types {
			data, err := os.ReadFile(filepath.Join(dir, generation, name+".json"))
			if os.IsNotExist(err) {
				continue // the type is newer
			}
			if err != nil {
				t.Fatal(err)
			}
			readsWhole(t, generation+"/"+name, data, reflect.New(reflect.TypeOf(v).Elem()).Interface())
		}
	}
}

// missing are the lines that are in one format and not in another.
func missing(in, from []string) []string {
	return slices.DeleteFunc(slices.Clone(in), func(line string) bool { return slices.Contains(from, line) })
}

// readsWhole wants what was read to be written again as it was: nothing of it was passed over.
func readsWhole(t *testing.T, name string, data []byte, into any) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		t.Errorf("sample %s: %v", name, err)
		return
	}
	again, err := json.Marshal(into)
	if err != nil {
		t.Fatal(err)
	}
	var was, is any
	if json.Unmarshal(data, &was) != nil || json.Unmarshal(again, &is) != nil || !within(was, is) {
		t.Errorf("sample %s comes back as %s", name, again)
	}
}

// within says whether everything in was is the same in is, which may have more fields.
func within(was, is any) bool {
	old, ok := was.(map[string]any)
	if !ok {
		return reflect.DeepEqual(was, is)
	}
	now, ok := is.(map[string]any)
	for name, v := range old {
		if !ok || !within(v, now[name]) {
			return false
		}
	}
	return true
}

func generations(t *testing.T, dir string) []string {
	t.Helper()
	var all []string
	for n := 1; ; n++ {
		name := strconv.Itoa(n)
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return all
		}
		all = append(all, name)
	}
}

func read(t *testing.T, dir, generation string) []string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, generation, "shape.txt"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(data)), "\n")
}

func write(t *testing.T, dir string, lines []string, types map[string]any) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{"shape.txt": []byte(strings.Join(lines, "\n") + "\n")}
	for name, v := range types {
		full := reflect.New(reflect.TypeOf(v).Elem())
		fill(full.Elem(), 1)
		data, err := json.MarshalIndent(full.Interface(), "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		files[name+".json"] = append(data, '\n')
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// opaque are the types that have a JSON form of their own.
func opaque(t reflect.Type) bool {
	return t.Implements(reflect.TypeFor[json.Marshaler]()) || reflect.PointerTo(t).Implements(reflect.TypeFor[json.Marshaler]())
}

func shapes(types map[string]any) []string {
	var lines []string
	for name, v := range types {
		lines = append(lines, fields(name, reflect.TypeOf(v).Elem(), nil)...)
	}
	slices.Sort(lines)
	return slices.Compact(lines)
}

// fields are the lines of one type; above are the types around it, in which it may occur again.
func fields(path string, t reflect.Type, above []reflect.Type) []string {
	switch {
	case opaque(t):
		return []string{path + " " + t.String()}
	case t.Kind() == reflect.Pointer:
		return fields(path, t.Elem(), above)
	case t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Uint8:
		return []string{path + " base64"}
	case t.Kind() == reflect.Slice:
		return fields(path+"[]", t.Elem(), above)
	case t.Kind() == reflect.Map:
		return fields(path+"{"+t.Key().Kind().String()+"}", t.Elem(), above)
	case t.Kind() != reflect.Struct || slices.Contains(above, t):
		return []string{path + " " + t.Kind().String()}
	}
	var lines []string
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "-" || !f.IsExported() && !f.Anonymous:
		case f.Anonymous && name == "":
			lines = append(lines, fields(path, f.Type, append(above, t))...)
		case name == "":
			lines = append(lines, fields(path+"."+f.Name, f.Type, append(above, t))...)
		default:
			lines = append(lines, fields(path+"."+name, f.Type, append(above, t))...)
		}
	}
	return lines
}

const deepest = 8

// fill sets every field to something that is not zero.
func fill(v reflect.Value, depth int) {
	if !v.CanSet() || depth > deepest {
		return
	}
	if at, ok := v.Addr().Interface().(*time.Time); ok {
		*at = time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), depth+1)
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), depth+1)
		}
	case reflect.Slice:
		if v.Type() == reflect.TypeFor[json.RawMessage]() {
			v.SetBytes([]byte(`{"opaque":true}`))
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0), depth+1)
	case reflect.Map:
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(key, depth+1)
		fill(value, depth+1)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(key, value)
	default:
		set(v)
	}
}

func set(v reflect.Value) {
	switch {
	case v.Kind() == reflect.String:
		v.SetString(fmt.Sprintf("a %s", v.Type().Name()))
	case v.Kind() == reflect.Bool:
		v.SetBool(true)
	case v.CanInt():
		v.SetInt(7)
	case v.CanUint():
		v.SetUint(7)
	case v.CanFloat():
		v.SetFloat(7.5)
	}
}
