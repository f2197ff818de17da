package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"gantry/internal/sysctl"
)

// checkSysctls refuses what would change the node: parameters that no namespace owns, or whose
// namespace is the node's. The list is the one of the Kubernetes documentation.
func checkSysctls(s Spec) error {
	for _, name := range slices.Sorted(maps.Keys(s.Sysctls)) {
		path, err := sysctlPath(name)
		if err != nil {
			return err
		}
		switch {
		case strings.HasPrefix(path, "net/"):
			if s.Net == "" {
				return fmt.Errorf("sysctl %s needs a network namespace of the pod's own: %w", name, errdefs.ErrInvalidArgument)
			}
		case ofIPC(path):
			if s.IPC == "" {
				return fmt.Errorf("sysctl %s needs an IPC namespace of the pod's own: %w", name, errdefs.ErrInvalidArgument)
			}
		default:
			return fmt.Errorf("sysctl %s is not namespaced: %w", name, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

func ofIPC(path string) bool {
	return path == "kernel/sem" || strings.HasPrefix(path, "kernel/shm") ||
		strings.HasPrefix(path, "kernel/msg") || strings.HasPrefix(path, "fs/mqueue/")
}

// sysctlPath turns a name into a path below /proc/sys. The separator that comes first is the
// separator; the other one then stands for itself, as in sysctl.d(5).
func sysctlPath(name string) (string, error) {
	path := name
	if i := strings.IndexAny(name, "./"); i >= 0 && name[i] == '.' {
		path = strings.Map(func(r rune) rune {
			switch r {
			case '.':
				return '/'
			case '/':
				return '.'
			}
			return r
		}, name)
	}
	if !filepath.IsLocal(path) || filepath.Clean(path) != path {
		return "", fmt.Errorf("sysctl %q is not a name: %w", name, errdefs.ErrInvalidArgument)
	}
	return path, nil
}

// applySysctls sets those of the network first: it runs on the namespaces' thread, which gives up its
// rights to become the owner of an IPC namespace that a user namespace owns. The kernel lets nobody
// else change that one's.
func (s Spec) applySysctls() error {
	if len(s.Sysctls) == 0 {
		return nil
	}
	tree, err := sysctl.Open()
	if err != nil {
		return err
	}
	defer tree.Close()
	paths := make(map[string]string, len(s.Sysctls))
	for name := range s.Sysctls {
		path, err := sysctlPath(name)
		if err != nil {
			return err
		}
		paths[path] = name
	}
	inOrder := slices.SortedFunc(maps.Keys(paths), func(a, b string) int {
		if ofIPC(a) != ofIPC(b) {
			if ofIPC(b) {
				return -1
			}
			return 1
		}
		return strings.Compare(a, b)
	})
	owner := false
	for _, path := range inOrder {
		if s.User != "" && ofIPC(path) && !owner {
			if err := becomeRootOf(s.UIDs); err != nil {
				return err
			}
			owner = true
		}
		if err := applySysctl(tree, path, paths[path], s.Sysctls[paths[path]]); err != nil {
			return err
		}
	}
	return nil
}

func applySysctl(tree *sysctl.Tree, path, name, value string) error {
	err := tree.Write(path, value)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("sysctl %s does not exist: %w", name, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return fmt.Errorf("set sysctl %s to %q: %w: %w", name, value, errdefs.ErrInvalidArgument, err)
	}
	return nil
}
