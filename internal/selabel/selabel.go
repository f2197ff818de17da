// Package selabel gives pods and containers their SELinux labels: a process may use the files that have its
// categories (MCS), and no two pods have the same ones by chance.
//
// A pod has one label, which its containers share; a container that names a label of its own has that. What has a
// label is known by a key, so that recovering and releasing it twice does no harm.
//
// Errors: ErrFailedPrecondition where a label is asked for and there are none, ErrInvalidArgument for one that is no
// label.
package selabel

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/selinux/go-selinux"
	"github.com/opencontainers/selinux/go-selinux/label"
	"golang.org/x/sys/unix"

	"gantry/internal/pod"
)

// Policy is what the node's SELinux policy says of containers.
type Policy struct {
	// Process and File are the labels of a container's process and of its files, whose level is replaced by a
	// pod's. Empty ones label nothing, and pods that ask for a label are refused for the reason in Missing.
	Process string
	File    string
	Missing string
	// Relabel gives a file, or a directory with all below, a label; whatever has no labels is left alone.
	Relabel func(path, label string) error
}

// Node is the policy of this node; wanted is the operator's word.
func Node(wanted bool) Policy {
	switch {
	case !wanted:
		return Policy{Missing: "labels are turned off (selinux.enabled)"}
	case !selinux.GetEnabled():
		return Policy{Missing: "the kernel has no SELinux"}
	}
	process, file, err := label.InitLabels(nil)
	selinux.ReleaseLabel(process)
	switch {
	case err != nil:
		return Policy{Missing: "labels of containers: " + err.Error()}
	case process == "" || file == "":
		return Policy{Missing: "the node's SELinux policy has no labels of containers (container-selinux has)"}
	}
	return Policy{Process: process, File: file, Relabel: relabel}
}

func relabel(path, to string) error {
	err := label.Relabel(path, to, false)
	var of *os.PathError
	switch {
	case errors.Is(err, unix.ENOTSUP):
		return nil
	case err != nil && !errors.As(err, &of): // the library's own, of directories such as /etc
		return fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, err)
	}
	return err
}

// Labels are those of a process and of the files that are its own. The zero value is none.
type Labels struct {
	Process string `json:"process,omitempty"`
	Mount   string `json:"mount,omitempty"`
}

func (l Labels) level() string {
	c, _ := selinux.NewContext(l.Process)
	return c["level"]
}

// Book gives labels out and remembers whose they are.
type Book struct {
	policy Policy

	mu    sync.Mutex
	taken map[pod.Key]string // levels by whoever has them; guarded by mu
}

// New returns an empty book.
func New(p Policy) *Book { return &Book{policy: p, taken: make(map[pod.Key]string)} }

// Pod gives a pod its labels, with categories that nobody else has unless it names some.
func (b *Book) Pod(key pod.Key, sec *pod.Security) (Labels, error) { return b.give(key, sec, "") }

// Container gives a container of a pod with the labels own its labels: the pod's, unless it names others.
func (b *Book) Container(key pod.Key, sec *pod.Security, own Labels) (Labels, error) {
	if sec.SELinux.Empty() && own != (Labels{}) {
		b.Recover(key, own)
		return own, nil
	}
	return b.give(key, sec, own.level())
}

func (b *Book) give(key pod.Key, sec *pod.Security, level string) (Labels, error) {
	if b.policy.Process == "" {
		if sec.DemandsSELinux() {
			return Labels{}, fmt.Errorf("selinux_options: %s: %w", b.policy.Missing, errdefs.ErrFailedPrecondition)
		}
		return Labels{}, nil
	}
	process, err := selinux.NewContext(b.policy.Process)
	if err != nil {
		return Labels{}, fmt.Errorf("label of container processes %q: %w", b.policy.Process, err)
	}
	file, err := selinux.NewContext(b.policy.File)
	if err != nil {
		return Labels{}, fmt.Errorf("label of container files %q: %w", b.policy.File, err)
	}
	if err := overlay(process, file, sec.SELinux); err != nil {
		return Labels{}, err
	}
	if o := sec.SELinux; o != nil && o.Level != "" {
		level = o.Level
	}
	if process["level"] != "" || level != "" { // a policy without levels has no categories
		level = b.take(key, level)
		process["level"], file["level"] = level, level
	}
	return Labels{Process: process.Get(), Mount: file.Get()}, nil
}

// overlay puts what o names over the policy's labels. Files have no role, and the type of files.
func overlay(process, file selinux.Context, o *pod.SELinux) error {
	if o.Empty() {
		return nil
	}
	for part, value := range map[string]string{"user": o.User, "role": o.Role, "type": o.Type} {
		if strings.ContainsAny(value, ": \t\n\"\x00") {
			return fmt.Errorf("selinux_options: %s %q: %w", part, value, errdefs.ErrInvalidArgument)
		}
		if value != "" {
			process[part] = value
		}
	}
	if o.User != "" {
		file["user"] = o.User
	}
	if o.Level != "" && !levels.MatchString(o.Level) {
		return fmt.Errorf("selinux_options: level %q: %w", o.Level, errdefs.ErrInvalidArgument)
	}
	return nil
}

// levels are a sensitivity, or two, and categories: s0, s0:c1,c2, s0-s1:c0.c1023 (mcs(8)).
var levels = regexp.MustCompile(`^s\d{1,2}(-s\d{1,2})?(:c\d{1,4}(\.c\d{1,4})?(,c\d{1,4}(\.c\d{1,4})?)*)?$`)

// categories are how many there are in the policies of distributions: pairs of them tell half a million pods apart.
const categories = 1024

// take makes level, or where it is empty one that nobody has, the one of key.
func (b *Book) take(key pod.Key, level string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if level == "" {
		used := make(map[string]bool, len(b.taken))
		for _, l := range b.taken {
			used[l] = true
		}
		for level == "" || used[level] {
			low, high := rand.IntN(categories-1), rand.IntN(categories-1)
			if high >= low {
				high++
			}
			level = fmt.Sprintf("s0:c%d,c%d", min(low, high), max(low, high))
		}
	}
	b.taken[key] = level
	return level
}

// Recover remembers labels that were given out earlier.
func (b *Book) Recover(key pod.Key, l Labels) {
	if level := l.level(); level != "" {
		b.take(key, level)
	}
}

// Release makes the categories of key free for others, once nobody else has them.
func (b *Book) Release(key pod.Key) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.taken, key)
}

// Relabel gives files the label of a container's own; without labels it does nothing.
func (b *Book) Relabel(path string, l Labels) error {
	if l.Mount == "" || b.policy.Relabel == nil {
		return nil
	}
	if err := b.policy.Relabel(path, l.Mount); err != nil {
		return fmt.Errorf("selinux_relabel: %s: %w", path, err)
	}
	return nil
}
