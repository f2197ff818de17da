package docker

import (
	"encoding/json"
	"maps"

	"github.com/containerd/errdefs"

	"gantry/internal/ocispec"
	"gantry/internal/pod"
)

// A kubelet on cgroup v2 asks for memory.oom.group and memory.swap.max of every container, as files of its cgroup.
// Docker's API has words for some files: their limits Docker keeps. The others are written when Docker has started the
// container, which makes the cgroup; until the server has done so, milliseconds later, the container runs without them.
// A label of the container keeps them for a start by another server.

// files are those that Docker has no word for.
func (n *node) files(r *pod.Resources) map[string]string {
	_, rest := ocispec.Processes(r.Unified)
	if _, told := r.SwapBound(); !told || !n.swap {
		return rest
	}
	rest = maps.Clone(rest)
	delete(rest, pod.MemorySwapMax)
	return rest
}

// filesWith are files after an update. All of them are written then: Docker's own update has systemd write its values.
func (n *node) filesWith(files map[string]string, update *pod.Resources) map[string]string {
	all := map[string]string{}
	maps.Copy(all, files)
	if _, told := update.SwapBound(); told && n.swap {
		delete(all, pod.MemorySwapMax)
	}
	maps.Copy(all, n.files(update))
	return all
}

func encodeFiles(files map[string]string) string {
	if len(files) == 0 {
		return ""
	}
	text, err := json.Marshal(files)
	if err != nil { // strings always can be
		return ""
	}
	return string(text)
}

func decodeFiles(text string) map[string]string {
	var files map[string]string
	if text == "" || json.Unmarshal([]byte(text), &files) != nil {
		return nil
	}
	return files
}

// writeFiles writes the files of a container's cgroup. One that does not run has none.
func (e *Engine) writeFiles(is object) error {
	if is.cgroup == "" || len(is.files) == 0 {
		return nil
	}
	if err := e.cgroups.Write(is.cgroup, is.files); !errdefs.IsNotFound(err) {
		return err
	}
	return nil
}

// finishFiles writes those that a server did not come to that ended between a start and them. What has another value
// than a new cgroup's was changed since, which the label does not tell.
func (e *Engine) finishFiles(is object) {
	left := maps.Clone(is.files)
	maps.DeleteFunc(left, func(name, _ string) bool {
		now := e.cgroups.Value(is.cgroup, name)
		return now != "0" && now != "max"
	})
	is.files = left
	if err := e.writeFiles(is); err != nil {
		e.log.Warn("a container runs without a limit", "container", is.id, "error", err)
	}
}
