package projquota_test

import (
	"testing"

	"github.com/containerd/errdefs"

	"gantry/internal/projquota"
)

func TestParseRange(t *testing.T) {
	for text, want := range map[string]projquota.Range{
		"":                      {},
		"1-1":                   {First: 1, Last: 1},
		"2000000000-2000999999": {First: 2000000000, Last: 2000999999},
		"1-4294967295":          {First: 1, Last: 4294967295},
	} {
		if got, err := projquota.ParseRange(text); err != nil || got != want {
			t.Errorf("%q is %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"0-5", "5", "5-", "-5", "7-6", "1-4294967296", "a-b", "1-2-3", " 1-2"} {
		if got, err := projquota.ParseRange(text); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q is %v, %v", text, got, err)
		}
	}
}

// What project quotas do is tested on file systems that have them: test/cgroup2, in a virtual machine.
func TestFileSystemsWithoutProjectsSaySo(t *testing.T) {
	if fs, err := projquota.Open("/proc", projquota.Range{First: 1, Last: 2}); !errdefs.IsNotImplemented(err) {
		t.Errorf("%v, %v", fs, err)
	}
	if fs, err := projquota.Open(t.TempDir()+"/none", projquota.Range{First: 1, Last: 2}); err == nil {
		t.Errorf("a directory that is not there: %v", fs)
	}
}
