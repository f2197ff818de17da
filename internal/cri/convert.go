package cri

import (
	"maps"
	"path"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// checkName wants a name that can stand in a path and on one line of a log.
func checkName(field, s string) error {
	switch {
	case s == "":
		return invalid(field, "must not be empty")
	case strings.ContainsRune(s, '/'), s == ".", s == "..":
		return invalid(field, "%q cannot be part of a path", s)
	}
	return checkLine(field, s)
}

// checkLine refuses control characters: the value is written into files that are read by line, or
// handed to the kernel as a string that ends at NUL.
func checkLine(field, s string) error {
	if i := strings.IndexFunc(s, unicode.IsControl); i >= 0 {
		return invalid(field, "%q has a control character", s)
	}
	return nil
}

// checkString refuses what cannot be handed to execve(2) or kept in the journal unchanged.
func checkString(field, s string) error {
	if strings.ContainsRune(s, 0) {
		return invalid(field, "has a NUL byte")
	}
	if !utf8.ValidString(s) {
		return invalid(field, "is not valid UTF-8")
	}
	return nil
}

func checkStrings(field string, list []string) error {
	for _, s := range list {
		if err := checkString(field, s); err != nil {
			return err
		}
	}
	return nil
}

// checkAbs wants an absolute path.
func checkAbs(field, p string) error {
	if p == "" {
		return invalid(field, "must not be empty")
	}
	if !path.IsAbs(p) {
		return invalid(field, "%q is not an absolute path", p)
	}
	return checkString(field, p)
}

// checkBelow wants a relative path that stays below the directory it is joined to.
func checkBelow(field, p string) error {
	if path.IsAbs(p) {
		return invalid(field, "%q must be relative", p)
	}
	if slices.Contains(strings.Split(p, "/"), "..") {
		return invalid(field, "%q leads out of its directory", p)
	}
	return checkLine(field, p)
}

func checkID(field, id string) error {
	if id == "" {
		return invalid(field, "must not be empty")
	}
	return checkLine(field, id)
}

// cloned copies a map that will outlive its request; an empty one becomes nil.
func cloned(m map[string]string) map[string]string {
	if len(m) == 0 {
		return nil
	}
	return maps.Clone(m)
}

func int64Pointer(v *runtime.Int64Value) *int64 {
	if v == nil {
		return nil
	}
	n := v.GetValue()
	return &n
}
