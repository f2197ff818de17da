package sysctl_test

import (
	"errors"
	"io/fs"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/lab"
	"gantry/internal/sysctl"
)

func TestMain(m *testing.M) { lab.Main(m) }

const hops = "net/ipv4/ip_default_ttl"

// inNamespace runs do on a thread with a network namespace of its own, which ends with it.
func inNamespace(t *testing.T, do func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocks
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- do()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T) *sysctl.Tree {
	t.Helper()
	tree, err := sysctl.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tree.Close)
	return tree
}

func TestParametersAreTheCallingThreads(t *testing.T) {
	tree := open(t)
	before, err := tree.Read(hops)
	if err != nil {
		t.Fatal(err)
	}
	inNamespace(t, func() error {
		if err := tree.Write(hops, "77"); err != nil {
			return err
		}
		got, err := tree.Read(hops)
		if got != "77" {
			t.Errorf("it is %q after 77 was written", got)
		}
		return err
	})
	if got, err := tree.Read(hops); err != nil || got != before {
		t.Errorf("outside it became %q, %v; it was %q", got, err, before)
	}
	if at, err := os.ReadFile("/proc/sys/" + hops); err != nil || strings.TrimSpace(string(at)) != before {
		t.Errorf("/proc says %q, %v; the tree %q", at, err, before)
	}
}

func TestSetWritesWhatIsDifferent(t *testing.T) {
	tree := open(t)
	inNamespace(t, func() error {
		for _, c := range []struct {
			value   string
			changed bool
		}{{"61", true}, {"61", false}, {"62", true}} {
			changed, err := tree.Set(hops, c.value)
			if err != nil {
				return err
			}
			if changed != c.changed {
				t.Errorf("set to %s: changed is %v", c.value, changed)
			}
		}
		return nil
	})
	if changed, err := tree.Set("net/ipv4/no_such_thing", "1"); changed || err != nil {
		t.Errorf("a parameter that is not there: %v, %v", changed, err)
	}
}

func TestErrorsNameTheParameter(t *testing.T) {
	tree := open(t)
	_, err := tree.Read("net/ipv4/no_such_thing")
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "/proc/sys/net/ipv4/no_such_thing") {
		t.Error(err)
	}
	inNamespace(t, func() error {
		if err := tree.Write(hops, "many"); !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), hops) {
			t.Error(err)
		}
		return nil
	})
}

// Whoever is in a network namespace that others are beside finds its parameters as fast as alone: the median of
// what it takes in the last of many namespaces is near that in the first.
func TestManyNamespacesCostNothing(t *testing.T) {
	const many, few = 600, 30
	took := make([]time.Duration, 0, many)
	files := make([]*os.File, 0, many) // keep the namespaces
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	for range many {
		inNamespace(t, func() error {
			f, err := os.Open("/proc/thread-self/ns/net")
			if err != nil {
				return err
			}
			files = append(files, f)
			tree, err := sysctl.Open()
			if err != nil {
				return err
			}
			defer tree.Close()
			began := time.Now()
			for _, name := range []string{"net/ipv4/ping_group_range", "net/ipv6/conf/lo/accept_ra", "net/core/somaxconn"} {
				if _, err := tree.Read(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
					return err
				}
			}
			took = append(took, time.Since(began))
			return nil
		})
	}
	first, last := least(took[:few]), least(took[many-few:])
	if last > 4*first+50*time.Microsecond {
		t.Errorf("it took %s in one of the first namespaces and %s in one of the last", first, last)
	}
}

// least is what the work takes when nothing comes between.
func least(all []time.Duration) time.Duration {
	shortest := all[0]
	for _, d := range all {
		shortest = min(shortest, d)
	}
	return shortest
}
