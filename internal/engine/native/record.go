package native

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"gantry/internal/engine"
	"gantry/internal/keeper"
	"gantry/internal/netns"
	"gantry/internal/ociruntime"
	"gantry/internal/pod"
	"gantry/internal/selabel"
)

const (
	sandboxFile   = "sandbox.json"
	containerFile = "container.json"
	configFile    = "config.json" // OCI
)

// sandboxRecord is what later calls, and a successor after a crash, must know of a sandbox. It is
// written before anything is made.
type sandboxRecord struct {
	Handler    string     `json:"handler,omitempty"`
	Namespaces netns.Spec `json:"namespaces"`
	// Cgroup is the parent of the containers' cgroups; OwnCgroup says that it was made for this
	// sandbox, NamedCgroup that the client named it, so that others may use it too.
	Cgroup      string `json:"cgroup"`
	OwnCgroup   bool   `json:"ownCgroup,omitempty"`
	NamedCgroup bool   `json:"namedCgroup,omitempty"`
	Pause       bool   `json:"pause,omitempty"`
	// Labels are the pod's of SELinux.
	Labels selabel.Labels `json:"labels,omitzero"`
}

func (r *sandboxRecord) made(key pod.Key) engine.Made {
	return engine.Made{ID: string(key), NetNS: r.Namespaces.Net, CgroupPath: r.Cgroup}
}

// containerRecord is what later calls must know of a container. It is written before the keeper is asked.
type containerRecord struct {
	Sandbox pod.Key         `json:"sandbox,omitempty"`
	Runtime keeper.Runtime  `json:"runtime"`
	Created engine.Created  `json:"created"` // without Pid
	Process json.RawMessage `json:"process"` // OCI, the pattern of an exec
	Handler string          `json:"handler,omitempty"`
	UserNS  bool            `json:"userns,omitempty"`
	// Restored says that the container has no process before its start.
	Restored bool           `json:"restored,omitempty"`
	Labels   selabel.Labels `json:"labels,omitzero"`
}

// program is how to call the container's OCI runtime beside the keeper.
func (r *containerRecord) program() ociruntime.Runtime {
	return ociruntime.Runtime{Path: r.Runtime.Path, Args: r.Runtime.Args}
}

func (e *Engine) readSandbox(key pod.Key) (*sandboxRecord, error) {
	return e.sandboxes.get(key, filepath.Join(e.sandboxDir(key), sandboxFile), "sandbox "+key.Short())
}

func (e *Engine) writeSandbox(key pod.Key, r *sandboxRecord) error {
	if err := e.sandboxes.put(key, filepath.Join(e.sandboxDir(key), sandboxFile), r); err != nil {
		return fmt.Errorf("record sandbox: %w", err)
	}
	return nil
}

func (e *Engine) readContainer(key pod.Key) (*containerRecord, error) {
	return e.containers.get(key, filepath.Join(e.containerDir(key), containerFile), "container "+key.Short())
}

// writeBundle writes an OCI spec, which the runtime reads once, after this call.
func writeBundle(dir string, spec any) error {
	data, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, configFile), data, 0o600)
}

// keys lists the names of directories in dir.
func keys(dir string) ([]pod.Key, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("state of the native engine: %w", err)
	}
	var all []pod.Key
	for _, e := range entries {
		if e.IsDir() {
			all = append(all, pod.Key(e.Name()))
		}
	}
	return all, nil
}
