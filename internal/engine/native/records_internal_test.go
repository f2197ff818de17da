package native

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
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
