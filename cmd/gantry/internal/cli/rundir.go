package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/uuid"
	core "k8s.io/api/core/v1"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/cmd/gantry/internal/manifest"
)

// marker is in every directory that `gantry run` made: only such a directory is ever removed.
const marker = ".gantry-run"

// memoryDir is where the emptyDir volumes with medium Memory of the pod directory id lie: POSIX has
// /dev/shm on a tmpfs.
func memoryDir(id string) string { return filepath.Join("/dev/shm/gantry-pods", id) }

// makeDirectories makes the pod's directory and the volumes that the manifest wants made.
func makeDirectories(p *manifest.Pod) error {
	dir := p.Sandbox.Annotations[manifest.AnnotationDirectory]
	if err := os.MkdirAll(p.Sandbox.LogDirectory, 0o755); err != nil {
		return fmt.Errorf("make log directory: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, marker), nil, 0o600); err != nil {
		return fmt.Errorf("mark pod directory: %w", err)
	}
	for _, v := range p.Volumes {
		if v.Image != "" {
			continue
		}
		if err := makeVolume(v); err != nil {
			return errors.Join(fmt.Errorf("volume %s: %w", v.Name, err), removeDirectoriesOf(dir))
		}
	}
	return nil
}

func makeVolume(v manifest.Volume) error {
	if v.Empty {
		if err := makeEmpty(v); err != nil {
			return err
		}
	} else if err := checkHostPath(v.Path, v.Type); err != nil {
		return err
	}
	for _, sub := range v.SubPaths {
		if err := os.MkdirAll(filepath.Join(v.Path, sub), 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}

// makeEmpty gives everybody the directory, as the kubelet does; fsGroup's is inherited by what is
// made in it.
func makeEmpty(v manifest.Volume) error {
	if err := os.MkdirAll(v.Path, 0o755); err != nil {
		return err
	}
	mode := os.FileMode(0o777)
	if v.Group != nil {
		if err := os.Chown(v.Path, -1, int(*v.Group)); err != nil {
			return err
		}
		mode |= os.ModeSetgid
	}
	return os.Chmod(v.Path, mode)
}

// checkHostPath does what HostPathType asks for.
func checkHostPath(path string, want core.HostPathType) error {
	switch want {
	case core.HostPathUnset:
		return nil
	case core.HostPathDirectoryOrCreate:
		return os.MkdirAll(path, 0o755)
	case core.HostPathFileOrCreate:
		f, err := os.OpenFile(path, os.O_CREATE, 0o644)
		if err != nil {
			return err
		}
		return f.Close()
	}
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	var is bool
	switch m := st.Mode(); want {
	case core.HostPathDirectory:
		is = m.IsDir()
	case core.HostPathFile:
		is = m.IsRegular()
	case core.HostPathSocket:
		is = m&os.ModeSocket != 0
	case core.HostPathCharDev:
		is = m&os.ModeCharDevice != 0
	case core.HostPathBlockDev:
		is = m&os.ModeDevice != 0 && m&os.ModeCharDevice == 0
	default:
		return fmt.Errorf("hostPath type %q is not known", want)
	}
	if !is {
		return fmt.Errorf("hostPath %s is no %s", path, want)
	}
	return nil
}

// removeDirectories removes what `gantry run` made for the pod, and nothing for other pods.
func removeDirectories(p *v1.PodSandbox) error {
	return removeDirectoriesOf(p.Annotations[manifest.AnnotationDirectory])
}

// removeDirectoriesOf trusts no annotation: the directory must be named by a UUID and carry the marker.
func removeDirectoriesOf(dir string) error {
	id := filepath.Base(dir)
	if !filepath.IsAbs(dir) || uuid.Validate(id) != nil {
		return nil
	}
	if _, err := os.Lstat(filepath.Join(dir, marker)); err != nil {
		return nil
	}
	if err := errors.Join(os.RemoveAll(dir), os.RemoveAll(memoryDir(id))); err != nil {
		return fmt.Errorf("remove the pod's directory: %w", err)
	}
	for _, parent := range []string{filepath.Dir(dir), filepath.Dir(memoryDir(id))} {
		_ = os.Remove(parent) // while other pods use it, it stays
	}
	return nil
}
