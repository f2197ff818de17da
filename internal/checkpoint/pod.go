package checkpoint

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	metadata "github.com/checkpoint-restore/checkpointctl/lib"
	"github.com/containerd/errdefs"
)

// PodFile says what is in the directory of a pod's checkpoint: it is written last, so that a checkpoint
// that has it is whole. Beside it stand one archive a container.
const PodFile = metadata.PodOptionsFile

// podVersion is the format of a pod's checkpoint.
const podVersion = 1

// Pod says which containers a pod's checkpoint holds.
type Pod struct {
	Archives map[string]string // file names below the directory, by container name
	// Name, Namespace, UID and ID are the pod's.
	Name, Namespace, UID, ID string
}

// ArchiveName is the name of the file of a container in a pod's checkpoint.
func ArchiveName(container string) string { return container + ".tar" }

// DescribePod writes what p says into dir.
func DescribePod(dir string, p *Pod) error {
	_, err := metadata.WriteJSONFile(metadata.CheckpointedPodOptions{
		Version: podVersion, Containers: p.Archives,
		Annotations: map[string]string{
			metadata.CheckpointAnnotationEngine: "gantry", metadata.CheckpointAnnotationPod: p.Name,
			metadata.CheckpointAnnotationNamespace: p.Namespace, metadata.CheckpointAnnotationPodUID: p.UID,
			metadata.CheckpointAnnotationPodID: p.ID,
		},
	}, dir, PodFile)
	return err
}

// DescribesPod says what is in dir.
func DescribesPod(dir string) (*Pod, error) {
	var o metadata.CheckpointedPodOptions
	err := readJSON(dir, PodFile, &o)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is no checkpoint of a pod: it has no %s: %w", dir, PodFile, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return nil, err
	}
	if o.Version != podVersion {
		return nil, fmt.Errorf("%s: version %d of a pod's checkpoint, known is %d: %w", dir, o.Version, podVersion, errdefs.ErrInvalidArgument)
	}
	for container, file := range o.Containers {
		if file == "" || file != filepath.Base(file) || !filepath.IsLocal(file) {
			return nil, fmt.Errorf("%s: container %s: %q is no file name: %w", dir, container, file, errdefs.ErrInvalidArgument)
		}
	}
	return &Pod{
		Archives: o.Containers, Name: o.Annotations[metadata.CheckpointAnnotationPod],
		Namespace: o.Annotations[metadata.CheckpointAnnotationNamespace], UID: o.Annotations[metadata.CheckpointAnnotationPodUID],
		ID: o.Annotations[metadata.CheckpointAnnotationPodID],
	}, nil
}
