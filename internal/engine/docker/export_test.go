package docker

import (
	"time"

	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/client"

	"gantry/internal/cgroup"
	"gantry/internal/engine"
	"gantry/internal/pod"
)

// PauseELF is the built-in pause program.
var PauseELF = pauseProgram

// A Node is a daemon that is only spoken of.
type Node struct{ n *node }

// NewNode is a daemon that speaks a version of the API and says of itself what info does.
func NewNode(info system.Info, api string) (*Node, error) {
	n, err := nodeOf(info, api, -1000)
	return &Node{n}, err
}

// Container is what Docker is asked for.
func (n *Node) Container(req *engine.Create) (client.ContainerCreateOptions, error) {
	return n.n.asked(req)
}

// Pause is what Docker is asked for a sandbox.
func (n *Node) Pause(spec *pod.SandboxSpec) (client.ContainerCreateOptions, error) {
	return n.n.pause(spec)
}

// Cgroup is where a container's processes are.
func (n *Node) Cgroup(parent, id string) string { return n.n.containerCgroup(parent, id) }

// AgeUsage waits until no question of what the store occupies is under way, and makes the last one older, and one
// that took no time: Docker rests the longer the longer it took.
func (s *Images) AgeUsage(by time.Duration) {
	u := &s.usage
	u.mu.Lock()
	defer u.mu.Unlock()
	if asking := u.asking; asking != nil {
		u.mu.Unlock()
		<-asking
		u.mu.Lock()
	}
	u.took = 0
	u.tried, u.at = u.tried.Add(-by), u.at.Add(-by)
}

// UseCgroups has the engine take the cgroups of f.
func (e *Engine) UseCgroups(f *cgroup.FS) { e.cgroups = f }

// UseOOMWait has an exit wait so long for the word that it was an OOM kill.
func (e *Engine) UseOOMWait(d time.Duration) { e.oomWait = d }

// KillTree is killTree.
var KillTree = killTree
