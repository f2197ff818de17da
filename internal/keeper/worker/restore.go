package worker

import (
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// unrestored says whether the container is to be restored and has no process yet.
func (c *container) unrestored() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.Restore != "" && c.Pid == 0
}

// restore has the runtime make the container's processes again from a checkpoint. A restore that was interrupted, by the
// end of a worker or of the runtime itself, is taken over if the processes run: they would do twice what they do. Else it
// is undone, and after a worker's end tried once more.
func (c *container) restore(interrupted bool) error {
	if !c.unrestored() {
		return nil
	}
	if interrupted {
		if c.restored() {
			return c.takeRestored()
		}
		c.unrestore()
	}
	err := c.invokeOnStreams("restore", "--detach", "--bundle", c.Bundle, "--image-path", c.Restore, "--work-path", c.dir,
		"--pid-file", filepath.Join(c.dir, "pid"))
	if err == nil || unanswered(err) && c.restored() {
		err = c.takeRestored()
	}
	if err == nil {
		return nil
	}
	c.unrestore()
	if said := criuErrors(filepath.Join(c.dir, "restore.log")); said != "" {
		return fmt.Errorf("%w; CRIU says %s", err, said)
	}
	return err
}

// criuErrors is the last error in a log of CRIU's, "" when there is none.
func criuErrors(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	last := ""
	for line := range strings.Lines(string(data)) {
		if _, text, ok := strings.Cut(line, "Error "); ok {
			last = strings.TrimSpace(text)
		}
	}
	return last
}

// restored says whether the runtime has the container, running, when what an interrupted restore left behind has ended.
func (c *container) restored() bool {
	awaitOrphans(filepath.Join(c.dir, "pid"))
	pid, err := readPid(filepath.Join(c.dir, "pid"))
	if err != nil || startTime(pid) == 0 {
		return false
	}
	return c.status() == "running"
}

// takeRestored claims the processes and begins to move their output.
func (c *container) takeRestored() error {
	if err := c.adopt(); err != nil {
		return err
	}
	c.w.reached(restoreClaim)
	if err := c.connect(); err != nil {
		return err
	}
	if err := c.save(phaseStarting); err != nil { // with the pid
		return err
	}
	c.run()
	return nil
}

// unrestore removes what a restore that failed left at the runtime and in the container's cgroup.
func (c *container) unrestore() {
	killOrphans(filepath.Join(c.dir, "pid"))
	err := invoke(c.wanted, c.Runtime, c.dir, [3]*os.File{}, "delete", "--force", c.Key)
	if err != nil && !noRuntime(err) {
		log.Printf("remove what is left of the restore of %s: %v", c.Key, err)
	}
	killCgroup(c.CgroupPath, unix.SIGKILL)
	awaitEmpty(c.CgroupPath)
	removeCgroup(c.CgroupPath)
	_ = os.Remove(filepath.Join(c.dir, "pid"))
	c.mu.Lock()
	c.Pid, c.Began = 0, 0
	c.mu.Unlock()
}
