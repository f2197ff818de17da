package config

import (
	"encoding"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// checkTypes says in TOML's words where a document has another type than the option it names. The decoder speaks of
// Go's types, and takes an integer for a duration. What is no TOML, and keys that nobody knows, are the decoder's to tell.
func (s *source) checkTypes(document []byte) error {
	var tree map[string]any
	if err := toml.Unmarshal(document, &tree); err != nil {
		return nil //nolint:nilerr // the decoder will say it, with the line
	}
	return errors.Join(s.mismatches(tree, reflect.TypeFor[Options](), "")...)
}

func (s *source) mismatches(found map[string]any, table reflect.Type, prefix string) []error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(found)) {
		wanted, key := fieldOf(table, name), prefix+name
		if wanted == nil {
			continue
		}
		has, wants := typeOf(reflect.TypeOf(found[name])), typeOf(wanted)
		if elements, is := found[name].([]any); is {
			has = typeOfAll(elements)
		}
		inner, is := found[name].(map[string]any)
		switch {
		case has == wants && is:
			errs = append(errs, s.mismatches(inner, wanted, key+".")...)
		case has != wants && (has != "array" || !strings.HasPrefix(wants, "array ")): // an empty one is of any type
			errs = append(errs, fmt.Errorf("%s%s: it is %s, and must be %s", s.at(key), key, article(has), article(wants)))
		}
	}
	return errs
}

// fieldOf is the type of a table's key, nil if it has none of that name.
func fieldOf(table reflect.Type, key string) reflect.Type {
	switch table.Kind() {
	case reflect.Map:
		return table.Elem()
	case reflect.Struct:
		for i := range table.NumField() {
			f := table.Field(i)
			if name, _, _ := strings.Cut(f.Tag.Get("toml"), ","); name == key {
				return f.Type
			}
		}
	}
	return nil
}

// typeOf is what TOML calls a type of Go (https://toml.io/en/v1.0.0#keyvalue-pair).
func typeOf(t reflect.Type) string {
	if reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]()) && t.PkgPath() == reflect.TypeFor[Options]().PkgPath() {
		return "string"
	}
	switch t.Kind() {
	case reflect.String:
		return "string"
	case reflect.Bool:
		return "boolean"
	case reflect.Int, reflect.Int32, reflect.Int64, reflect.Uint, reflect.Uint32, reflect.Uint64:
		return "integer"
	case reflect.Float32, reflect.Float64:
		return "float"
	case reflect.Slice:
		if t.Elem().Kind() != reflect.Interface {
			return "array of " + typeOf(t.Elem()) + "s"
		}
		return "array"
	case reflect.Map:
		return "table"
	}
	if t.PkgPath() == reflect.TypeFor[Options]().PkgPath() {
		return "table"
	}
	return "date or time" // the only others that a document has
}

// typeOfAll is that of an array.
func typeOfAll(elements []any) string {
	one := ""
	for _, e := range elements {
		of := typeOf(reflect.TypeOf(e))
		if one != "" && one != of {
			return "array of several types"
		}
		one = of
	}
	if one == "" {
		return "array"
	}
	return "array of " + one + "s"
}

func article(noun string) string {
	if strings.ContainsAny(noun[:1], "aeiou") {
		return "an " + noun
	}
	return "a " + noun
}
