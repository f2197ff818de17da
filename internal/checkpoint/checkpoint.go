// Package checkpoint knows the files of a container's checkpoint and the archive that holds them: the
// tar that Podman, CRI-O and containerd write and that checkpointctl reads. In it
//
//	config.dump       which container it was, and of which image
//	spec.dump         its OCI spec
//	status.dump       what its status was; "status" has the same as containerd writes it
//	checkpoint/       its processes, as CRIU wrote them
//	rootfs-diff.tar   what its root file system has and the image has not
//	deleted.files     what the image has and its root file system has not, a JSON list
//	container.log     its log so far, where it had one
//
// A checkpoint comes from outside: whoever wrote it chose every name in it. What is unpacked are plain
// files and directories, below the directory that the caller names and nowhere else.
//
// Errors: ErrInvalidArgument for what is no checkpoint, or one that is malformed or hostile.
package checkpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	metadata "github.com/checkpoint-restore/checkpointctl/lib"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// The names of a checkpoint's files.
const (
	ConfigFile  = metadata.ConfigDumpFile
	SpecFile    = metadata.SpecDumpFile
	StatusFile  = metadata.StatusDumpFile
	ImagesDir   = metadata.CheckpointDirectory
	RootfsDiff  = metadata.RootFsDiffTar
	DeletedFile = metadata.DeletedFilesFile
	DumpLogFile = metadata.DumpLogFile
	LogFile     = "container.log"
)

// ImageAnnotations are those that say that an image was made of a checkpoint: its root file system is
// what the archive holds. The older one is CRI-O's.
var imageAnnotations = []string{metadata.CheckpointAnnotationName, "io.kubernetes.cri-o.annotations.checkpoint.name"}

// IsImage says whether an image with these annotations was made of a checkpoint.
func IsImage(annotations map[string]string) bool {
	for _, name := range imageAnnotations {
		if annotations[name] != "" {
			return true
		}
	}
	return false
}

// Container says which container a checkpoint is of.
type Container struct {
	ID        string
	Name      string // of the container in its pod
	Image     string // as the pod named it
	ImageID   string // the store's id
	Runtime   string // OCI runtime
	CreatedAt time.Time
	At        time.Time // of the checkpoint
	StartedAt time.Time
	Pid       int
	// Status is what the container's status was, in a form that other runtimes may read.
	Status any
}

// Describe writes what c says into the directory of a checkpoint.
func Describe(dir string, c *Container) error {
	for name, content := range map[string]any{
		ConfigFile: metadata.ContainerConfig{
			ID: c.ID, Name: c.Name, RootfsImage: c.Image, RootfsImageRef: c.ImageID, RootfsImageName: c.Image,
			OCIRuntime: c.Runtime, CreatedTime: c.CreatedAt, CheckpointedAt: c.At,
		},
		StatusFile: c.Status,
		metadata.StatusFile: metadata.ContainerdStatus{
			CreatedAt: c.CreatedAt.UnixNano(), StartedAt: c.StartedAt.UnixNano(), Pid: uint32(max(0, c.Pid)),
		},
	} {
		if _, err := metadata.WriteJSONFile(content, dir, name); err != nil {
			return fmt.Errorf("describe checkpoint: %w", err)
		}
	}
	return nil
}

// WriteDeleted records what the container's root file system lacks of the image's, as paths in it.
func WriteDeleted(dir string, paths []string) error {
	if len(paths) == 0 {
		return nil
	}
	_, err := metadata.WriteJSONFile(paths, dir, DeletedFile)
	return err
}

// Deleted returns what WriteDeleted recorded.
func Deleted(dir string) ([]string, error) {
	var paths []string
	err := readJSON(dir, DeletedFile, &paths)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return paths, err
}

// Spec reads the OCI spec of the container into v.
func Spec(dir string, v any) error { return readJSON(dir, SpecFile, v) }

// Describes says which container the checkpoint in dir is of.
func Describes(dir string) (*Container, error) {
	for _, name := range []string{ConfigFile, SpecFile} {
		if err := isRegular(filepath.Join(dir, name)); err != nil {
			return nil, fmt.Errorf("no checkpoint: %w: %w", errdefs.ErrInvalidArgument, err)
		}
	}
	if st, err := os.Lstat(filepath.Join(dir, ImagesDir)); err != nil || !st.IsDir() {
		return nil, fmt.Errorf("no checkpoint: it has no directory %s: %w", ImagesDir, errdefs.ErrInvalidArgument)
	}
	var c metadata.ContainerConfig
	if err := readJSON(dir, ConfigFile, &c); err != nil {
		return nil, err
	}
	return described(&c)
}

func described(c *metadata.ContainerConfig) (*Container, error) {
	out := &Container{
		ID: c.ID, Name: c.Name, Image: c.RootfsImageName, ImageID: c.RootfsImageRef, Runtime: c.OCIRuntime,
		CreatedAt: c.CreatedTime, At: c.CheckpointedAt,
	}
	if out.Image == "" {
		out.Image = c.RootfsImage
	}
	if out.Image == "" && out.ImageID == "" {
		return nil, fmt.Errorf("no checkpoint: %s names no image: %w", ConfigFile, errdefs.ErrInvalidArgument)
	}
	return out, nil
}

func isRegular(path string) error {
	st, err := os.Lstat(path)
	if err == nil && !st.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: path, Err: errors.New("not a regular file")}
	}
	return err
}

// maxJSON bounds what is read into memory of a checkpoint's file.
const maxJSON = 32 << 20

// readJSON follows no link and waits for no FIFO.
func readJSON(dir, name string, v any) error {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("read checkpoint: %w", err)
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return fmt.Errorf("read checkpoint: %w", err)
	}
	if !st.Mode().IsRegular() || st.Size() > maxJSON {
		return fmt.Errorf("read checkpoint: %s is no file of at most %d bytes: %w", name, maxJSON, errdefs.ErrInvalidArgument)
	}
	if err := json.NewDecoder(f).Decode(v); err != nil {
		return fmt.Errorf("read checkpoint: %s: %w: %w", name, errdefs.ErrInvalidArgument, err)
	}
	return nil
}
