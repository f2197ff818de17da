package worker

import (
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"gantry/internal/atomicfile"
	"gantry/internal/keeper/wire"
)

// recover takes over what the last worker had: the records in the state directory and what the
// holder kept. After the death of both, only the records are left, and FIFOs are opened again.
func (w *Worker) recover(held map[string]int) error {
	files := map[string]map[string]int{}
	for name, fd := range held {
		key, short, _ := strings.Cut(name, "/")
		if files[key] == nil {
			files[key] = map[string]int{}
		}
		files[key][short] = fd
	}
	for _, sub := range []string{"c", "x"} {
		if err := os.MkdirAll(filepath.Join(w.opt.StateDir, sub), 0o700); err != nil {
			return fmt.Errorf("state directory: %w", err)
		}
	}
	keys, err := os.ReadDir(filepath.Join(w.opt.StateDir, "c"))
	if err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	var running sync.WaitGroup
	for _, d := range keys {
		key := d.Name()
		c, err := w.recoverContainer(key, files[key])
		if errors.Is(err, errUnread) {
			return err
		}
		if err != nil {
			log.Printf("recover container %s: %v", key, err)
			continue
		}
		if w.containers[key] != nil {
			delete(files, key)
		}
		if c != nil {
			running.Go(c.run)
		}
	}
	if err := w.recoverSinks(files); err != nil {
		return err
	}
	running.Wait() // what was announced before is so from the first request on
	w.reached(recoverExit)
	for key, left := range files { // of containers that were being removed
		m := wire.Names{}
		for name, fd := range left {
			m.Names = append(m.Names, key+"/"+name)
			_ = unix.Close(fd)
		}
		if err := w.tell(wire.OpDrop, m); err != nil {
			return err
		}
	}
	return w.recoverExecs()
}

// recoverContainer returns a container that is to run; nil is one that is not whole.
func (w *Worker) recoverContainer(key string, held map[string]int) (*container, error) {
	var s saved
	if err := readJSON(filepath.Join(w.containerDir(key), recordName), &s); err != nil {
		if errors.Is(err, os.ErrNotExist) { // before a create's first record, or after a delete's last
			return nil, os.RemoveAll(w.containerDir(key))
		}
		return nil, err
	}
	c := w.newContainer(s)
	c.recovered = true
	for name, fd := range held {
		c.held[name] = fd
	}
	w.containers[key] = c
	w.reached(recoverRecord)
	if s.Phase == phaseCreating { // waits for the create that is repeated, or a delete
		return nil, nil
	}
	if len(held) == 0 {
		log.Printf("container %s: lost with the holder: %s", key, s.heldByHolder())
	}
	err := c.prepare()
	if c.unrestored() {
		return nil, err
	}
	if err == nil {
		err = c.connect()
	}
	if err != nil { // without its output it can still be watched, stopped and removed
		log.Printf("recover container %s: %v", key, err)
	}
	w.reached(recoverStreams)
	if _, err := readExit(c.dir); errors.Is(err, errUnread) {
		return nil, err
	} else if err != nil {
		if err := c.claim(); err != nil {
			return nil, err
		}
	}
	w.reached(recoverClaim)
	return c, nil
}

func (w *Worker) recoverExecs() error {
	ids, err := os.ReadDir(filepath.Join(w.opt.StateDir, "x"))
	if err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	for _, d := range ids {
		var s execSaved
		dir := w.execDir(d.Name())
		err := readJSON(filepath.Join(dir, execFile), &s)
		if errors.Is(err, errUnread) {
			return err
		}
		if err != nil {
			if err = w.abortExec(dir); err != nil {
				log.Printf("recover exec %s: %v", d.Name(), err)
			}
			continue
		}
		x := w.newSession(s)
		x.recovered = true
		if c := w.containers[s.Key]; c != nil {
			x.cgroup = c.CgroupPath
		}
		w.execs[s.ID] = x
		e, err := readExit(dir)
		switch {
		case err == nil:
			x.end(*e)
		case errors.Is(err, errUnread):
			return err
		default:
			if err := x.claim(); err != nil {
				return err
			}
		}
		w.reached(recoverExec)
		go x.orphan()
	}
	return nil
}

// abortExec ends an exec that had begun and was not on record when its worker died.
func (w *Worker) abortExec(dir string) error {
	killOrphans("exec", filepath.Join(dir, "process.json"))
	if pid, ok := begun(dir); ok {
		endOf(pid, unix.SIGKILL)
	}
	return removeDir(dir)
}

// handOverLogs gives a new holder what belongs to the log driver. The caller holds w.mu.
func (w *Worker) handOverLogs() error {
	var errs []error
	for _, s := range w.sinks {
		s.mu.Lock()
		held := maps.Clone(s.held)
		s.mu.Unlock()
		for name, fd := range held {
			errs = append(errs, s.keep(map[string]int{name: fd}))
		}
	}
	w.serving.Lock()
	defer w.serving.Unlock()
	if w.plugin.file == nil {
		return errors.Join(errs...)
	}
	rc, err := w.plugin.file.SyscallConn()
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	var told error
	err = rc.Control(func(fd uintptr) { told = w.tell(wire.OpHold, wire.Names{Names: []string{pluginSocket}}, int(fd)) })
	return errors.Join(append(errs, err, told)...)
}

// errUnread says that a record is there and could not be read. Its container is none that is gone: a worker
// that went on without it would have the holder drop its descriptors. So recovery ends, and is tried again.
var errUnread = errors.New("the record is there and cannot be read")

// readRecord returns what a record has.
func readRecord(path string) ([]byte, error) {
	if atomicfile.IsTemporary(path) {
		return nil, os.ErrNotExist
	}
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) { // a stray file holds nothing up
		return nil, fmt.Errorf("%w: %w", errUnread, err)
	}
	return data, err
}

func readJSON(path string, v any) error {
	data, err := readRecord(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// handOver starts a new holder in place of the one that is gone, gives it every descriptor and
// claim, and returns, so that this worker ends: the new holder starts its own. So containers with a
// terminal outlive their holder, too.
func (w *Worker) handOver(listener int) error {
	ours, theirs, err := wire.Pair()
	if err != nil {
		return err
	}
	args := []string{"gantry-keeper", "--state", w.opt.StateDir, "--cgroup", w.opt.CgroupPath, "--adopt"}
	_, err = syscall.ForkExec("/proc/self/exe", args, &syscall.ProcAttr{
		Env: os.Environ(), Files: []uintptr{0, 1, 2, uintptr(theirs), 4},
		Sys: &syscall.SysProcAttr{Setsid: true},
	})
	_ = unix.Close(theirs)
	if err != nil {
		return fmt.Errorf("start a new holder: %w", err)
	}
	link, err := wire.NewConn(ours)
	if err != nil {
		return err
	}
	w.mu.Lock() // for good: nothing begins any more
	w.holder.Store(link)
	return w.handOverAll(listener)
}

// handOverAll gives a new holder everything: what cannot be given of one container costs the others nothing. The caller
// holds w.mu.
func (w *Worker) handOverAll(listener int) error {
	errs := []error{w.tell(wire.OpHold, wire.Names{Names: []string{wire.SocketName}}, listener), w.handOverLogs()}
	for _, c := range w.containers {
		c.mu.Lock()
		held, runs := maps.Clone(c.held), c.Pid > 0 && c.exit == nil
		c.mu.Unlock()
		for name := range held {
			if fd, ok := c.file(name); ok { // a log may be opened anew meanwhile
				errs = append(errs, c.keep(map[string]int{name: fd}))
			}
		}
		if runs {
			errs = append(errs, c.claim())
		}
	}
	for _, x := range w.execs {
		if x.Pid > 0 {
			errs = append(errs, x.claim())
		}
	}
	return errors.Join(errs...)
}
