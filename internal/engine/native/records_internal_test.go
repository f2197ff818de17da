package native

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/errdefs"

	"gantry/internal/pod"
)

func TestARecordIsReadAgainWhenItsFileIsAnother(t *testing.T) {
	var r records[sandboxRecord]
	path := filepath.Join(t.TempDir(), sandboxFile)
	want := func(when, cgroup string) {
		t.Helper()
		for range 2 { // read, and remembered
			got, err := r.get("k", path, "it")
			if err != nil || got.Cgroup != cgroup {
				t.Errorf("%s: %+v, %v, want cgroup %s", when, got, err, cgroup)
				return
			}
			got.Cgroup = "the caller's"
		}
	}
	put := func(cgroup string) {
		t.Helper()
		if err := r.put("k", path, &sandboxRecord{Cgroup: cgroup}); err != nil {
			t.Fatal(err)
		}
	}
	put("/a")
	want("written", "/a")
	put("/b")
	want("written again", "/b")
	if err := os.WriteFile(path, []byte(`{"cgroup":"/other"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	want("changed behind it", "/other")
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := r.get("k", path, "it"); err == nil || errdefs.IsNotFound(err) {
		t.Errorf("a torn record: %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := r.get("k", path, "it"); !errdefs.IsNotFound(err) {
		t.Errorf("a record that is gone: %v", err)
	}
	if len(r.read) != 0 {
		t.Errorf("%d records are remembered that cannot be read", len(r.read))
	}
}

func BenchmarkRecord(b *testing.B) {
	path := filepath.Join(b.TempDir(), containerFile)
	var r records[containerRecord]
	record := &containerRecord{Sandbox: "pod", Process: make([]byte, 4<<10)}
	for i := range record.Process {
		record.Process[i] = ' '
	}
	copy(record.Process, `{"args":["sleep"]}`)
	if err := r.put("k", path, record); err != nil {
		b.Fatal(err)
	}
	for name, forget := range map[string]bool{"remembered": false, "read": true} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if forget {
					r.forget("k")
				}
				if _, err := r.get("k", path, "it"); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func TestRecordsAreFoundByWhatTheySay(t *testing.T) {
	r := records[sandboxRecord]{by: func(s *sandboxRecord) string { return s.Cgroup }}
	dir := t.TempDir()
	path := func(key pod.Key) string { return filepath.Join(dir, string(key)) }
	put := func(key pod.Key, cgroup string) {
		t.Helper()
		if err := r.put(key, path(key), &sandboxRecord{Cgroup: cgroup}); err != nil {
			t.Fatal(err)
		}
	}
	want := func(cgroup string, keys ...pod.Key) {
		t.Helper()
		got := r.keysBy(cgroup)
		slices.Sort(got)
		if !slices.Equal(got, keys) {
			t.Errorf("in %s are %v, want %v", cgroup, got, keys)
		}
	}
	put("a", "/x")
	put("b", "/x")
	put("c", "/y")
	want("/x", "a", "b")
	put("b", "/y")
	want("/x", "a")
	want("/y", "b", "c")
	if _, err := r.get("b", path("b"), "it"); err != nil {
		t.Fatal(err)
	}
	r.gone("b")
	want("/y", "c")
	r.gone("c")
	r.gone("a")
	if len(r.found) != 0 || len(r.group) != 0 {
		t.Errorf("kept of records that are gone: %v, %v", r.found, r.group)
	}

	// Another process, which has written none of them, finds those that it has read.
	next := records[sandboxRecord]{by: r.by}
	if _, err := next.get("a", path("a"), "it"); err != nil {
		t.Fatal(err)
	}
	if got := next.keysBy("/x"); !slices.Equal(got, []pod.Key{"a"}) {
		t.Errorf("the next process finds %v", got)
	}
}
