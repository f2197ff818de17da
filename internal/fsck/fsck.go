// Package fsck finds what a server left on its node and no record names: mounts, network namespaces,
// leases, cgroups, writable layers, directories of pods, layers of images, log directories. The journal
// and the image records on the disk are the truth; no server is asked, so it works whether one runs or
// not. Whatever gantry makes for a pod or container carries its key, 64 hexadecimal digits, in its name.
package fsck

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Options say where to look.
type Options struct {
	Root     string // of the server: journal and images
	State    string // of the server
	NetNSDir string
	Cgroups  string   // where cgroup file systems are mounted
	LogDirs  []string // in each, a directory a pod: namespace_name_uid
	Repair   bool
	// Alone says that no other gantry server is on the machine. Cgroups and network namespaces lie where
	// all servers have theirs: without it only those count of which this server's own directories show
	// that they are its own.
	Alone bool
	// Age is how long a directory of logs or of a layer must not have changed to be an orphan: its owner
	// may be about to be recorded.
	Age time.Duration
}

// Kind is what an orphan is.
type Kind string

// The kinds, in the order in which they are removed.
const (
	Cgroup    Kind = "cgroup" // first: if something runs in it, all else stays
	Mount     Kind = "mount"
	Namespace Kind = "network namespace"
	Lease     Kind = "lease"
	Writable  Kind = "writable layer"
	Files     Kind = "files"
	Layer     Kind = "image layer"
	Logs      Kind = "logs"
)

var order = []Kind{Cgroup, Mount, Namespace, Lease, Writable, Files, Layer, Logs}

// Orphan is something that no record names.
type Orphan struct {
	Kind    Kind   `json:"kind"`
	Path    string `json:"path"`
	Was     string `json:"was"` // what it was, and whose
	Removed bool   `json:"removed,omitempty"`
	Error   string `json:"error,omitempty"` // why it was not removed

	key    string
	remove func() error
}

// Run returns the orphans, and removes them if Repair says so. A record that appears or goes while it
// looks belongs to a pod that comes or goes: nothing of that pod is an orphan.
func Run(o Options) ([]Orphan, error) {
	before, err := readRecords(o.Root)
	if err != nil {
		return nil, err
	}
	f := &finder{opts: o, known: before}
	err = errors.Join(f.mounts(), f.leases(), f.directories())
	f.learn()
	err = errors.Join(err, f.namespaces(), f.cgroups(), f.layers(), f.logs())
	if err != nil {
		return nil, err
	}
	after, err := readRecords(o.Root)
	if err != nil {
		return nil, err
	}
	found := slices.DeleteFunc(f.found, func(x Orphan) bool { return after.names(x.key) })
	slices.SortStableFunc(found, func(a, b Orphan) int {
		return cmp.Or(cmp.Compare(slices.Index(order, a.Kind), slices.Index(order, b.Kind)), deepestFirst(a, b))
	})
	if o.Repair {
		repair(found)
	}
	return found, nil
}

// repair removes what was found. Where something of a pod or container stays, so do its files: it may run.
func repair(found []Orphan) {
	stays := make(map[string]string)
	for i := range found {
		x := &found[i]
		if reason := stays[x.key]; reason != "" && x.key != "" {
			x.Error = reason
			continue
		}
		if err := x.remove(); err != nil {
			x.Error = err.Error()
			stays[x.key] = fmt.Sprintf("its %s is left", x.Kind)
			continue
		}
		x.Removed = true
	}
}

// deepestFirst orders mounts so that the upper is removed before what it lies in.
func deepestFirst(a, b Orphan) int {
	if a.Kind == Mount {
		return cmp.Compare(strings.Count(b.Path, "/"), strings.Count(a.Path, "/"))
	}
	return cmp.Compare(a.Path, b.Path)
}

// finder collects what the records do not name.
type finder struct {
	opts  Options
	known *records
	own   map[string]bool // keys of orphans in the server's own directories
	found []Orphan
}

// learn remembers which keys the orphans found so far have.
func (f *finder) learn() {
	f.own = make(map[string]bool)
	for _, x := range f.found {
		f.own[x.key] = true
	}
}

// ours says whether what lies in a place of all servers, with these keys in its path, is this server's.
func (f *finder) ours(keys ...string) bool {
	return f.opts.Alone || slices.ContainsFunc(keys, func(k string) bool { return f.own[k] })
}

var keyPattern = regexp.MustCompile(`(?:^|[^0-9a-f])([0-9a-f]{64})(?:[^0-9a-f]|$)`)

// keyIn returns the key in a name or path, "" if there is none.
func keyIn(name string) string {
	m := keyPattern.FindStringSubmatch(name)
	if m == nil {
		return ""
	}
	return m[1]
}

// orphan notes something unless its key is known. Without a key in its name it is nobody's.
func (f *finder) orphan(x Orphan, key string) {
	if key == "" || f.known.names(key) {
		return
	}
	x.key = key
	f.found = append(f.found, x)
}

// of says whose something was.
func of(what, key string) string { return fmt.Sprintf("%s of %s", what, key[:min(13, len(key))]) }

// entries lists a directory that need not be there.
func entries(dir string) ([]os.DirEntry, error) {
	list, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return list, err
}

// directories finds what pods and containers had on the disk.
func (f *finder) directories() error {
	for _, place := range []struct {
		dir, what string
		kind      Kind
	}{
		{filepath.Join(f.opts.Root, "images", "containers"), "root file system", Writable},
		{filepath.Join(f.opts.State, "pods"), "files", Files},
		{filepath.Join(f.opts.State, "native", "sandboxes"), "sandbox", Files},
		{filepath.Join(f.opts.State, "native", "containers"), "bundle", Files},
	} {
		list, err := entries(place.dir)
		if err != nil {
			return err
		}
		for _, e := range list {
			key, path := keyIn(e.Name()), filepath.Join(place.dir, e.Name())
			if key == "" {
				continue
			}
			f.orphan(Orphan{Kind: place.kind, Path: path, Was: of(place.what, key), remove: func() error { return removeUnmounted(path) }}, key)
		}
	}
	return nil
}

// layers finds the layers of images that no image and no container has, where no server has the store.
func (f *finder) layers() error {
	dir := filepath.Join(f.opts.Root, "images", "layers")
	list, err := entries(dir)
	if err != nil {
		return err
	}
	for _, e := range list {
		path := filepath.Join(dir, e.Name())
		var st unix.Stat_t
		// its own time is the layer's; when it was put there is the inode's
		if unix.Lstat(path, &st) != nil || f.known.layers[e.Name()] || time.Since(time.Unix(st.Ctim.Unix())) < f.opts.Age {
			continue
		}
		f.found = append(f.found, Orphan{Kind: Layer, Path: path, Was: "layer that no image and no container has", remove: func() error {
			unlock, err := lockStore(f.opts.Root)
			if err != nil {
				return err
			}
			defer unlock()
			tree := filepath.Join(f.opts.Root, "images", "trees", e.Name())
			if err := os.Remove(tree); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
			return os.RemoveAll(path)
		}})
	}
	return nil
}

// logs finds directories of logs of pods that have no record, which nobody has written to for long. The
// kubelet removes those of pods that were deleted through it.
func (f *finder) logs() error {
	for _, dir := range f.opts.LogDirs {
		list, err := entries(dir)
		if err != nil {
			return err
		}
		for _, e := range list {
			path := filepath.Join(dir, e.Name())
			parts := strings.SplitN(e.Name(), "_", 3)
			if len(parts) != 3 || f.known.logs[path] || f.known.uids[parts[2]] || youngerThan(path, f.opts.Age) {
				continue
			}
			f.found = append(f.found, Orphan{
				Kind: Logs, Path: path, Was: fmt.Sprintf("logs of pod %s/%s", parts[0], parts[1]),
				remove: func() error { return os.RemoveAll(path) },
			})
		}
	}
	return nil
}

// youngerThan says whether anything in the directory changed within age.
func youngerThan(dir string, age time.Duration) bool {
	young := false
	_ = filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // what is gone or cannot be read does not count
		}
		if info, err := d.Info(); err == nil && time.Since(info.ModTime()) < age {
			young = true
			return filepath.SkipAll
		}
		return nil
	})
	return young
}
