package worker

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/atomicfile"
	"gantry/internal/keeper/logdriver"
	"gantry/internal/keeper/wire"
)

// keyOption is the log option by which dockerd names a container to the plugin.
const keyOption = wire.LogKeyOption

// pluginSocket is the name of the plugin's listening socket at the holder: a connection that dockerd
// makes while there is no worker waits for the next.
const pluginSocket = "plugin.sock"

func (w *Worker) pluginRecord() string { return filepath.Join(w.opt.StateDir, "plugin") }

// servePlugin serves Docker's LogDriver protocol at the socket path, for good: a successor goes on.
func (w *Worker) servePlugin(path string) error {
	w.serving.Lock()
	defer w.serving.Unlock()
	if w.plugin.path == path && isSocket(path) {
		return nil
	}
	if !filepath.IsAbs(path) {
		return wire.Errorf(wire.CodeInvalid, "plugin's socket %q is not absolute", path)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("plugin's socket: %w", err)
	}
	fd, err := wire.Listen(path)
	if err != nil {
		return fmt.Errorf("plugin's socket: %w", err)
	}
	if err := atomicfile.Write(w.pluginRecord(), []byte(path), 0o600); err != nil {
		_ = unix.Close(fd)
		return fmt.Errorf("plugin's socket: %w", err)
	}
	if err := w.tell(wire.OpHold, wire.Names{Names: []string{pluginSocket}}, fd); err != nil {
		return err
	}
	w.acceptPlugin(path, fd)
	return nil
}

func isSocket(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.Mode()&os.ModeSocket != 0
}

// acceptPlugin takes over the listening socket fd. The caller holds w.serving or is alone.
func (w *Worker) acceptPlugin(path string, fd int) {
	if w.plugin.file != nil {
		_ = w.plugin.file.Close()
	}
	socket := os.NewFile(uintptr(fd), pluginSocket)
	w.plugin.path, w.plugin.file = path, socket
	go func() {
		for {
			conn, err := wire.AcceptFile(socket)
			if errors.Is(err, os.ErrClosed) {
				return
			}
			if err != nil {
				log.Print(err)
				<-time.After(acceptPause)
				continue
			}
			go func() {
				if err := logdriver.Serve(conn, w); err != nil {
					log.Printf("log driver: %v", err)
				}
			}()
		}
	}()
}

// recoverPlugin goes on serving what a dead worker served.
func (w *Worker) recoverPlugin(held int, ok bool) error {
	path, err := os.ReadFile(w.pluginRecord())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("plugin's socket: %w", err)
	}
	if ok {
		w.acceptPlugin(string(path), held)
		return nil
	}
	if err := w.servePlugin(string(path)); err != nil {
		log.Print(err) // the next container's log says it again
	}
	return nil
}

// Start is dockerd's: it has made a FIFO for a container's output.
func (w *Worker) Start(file string, options map[string]string) error {
	s := w.sink(options[keyOption])
	if s == nil || file == "" {
		return fmt.Errorf("no container of gantry's: %s=%q, file %q", keyOption, options[keyOption], file)
	}
	return s.feedFrom(file)
}

// stopLimit bounds how long dockerd waits for the end of a log whose disk is full. The log goes on.
const stopLimit = 10 * time.Second

// Stop is dockerd's: it will write no more into a FIFO, which it closes when it has the answer. Without
// a file it is the repetition of a request whose answer died with a worker: dockerd repeats it empty.
func (w *Worker) Stop(file string) error {
	w.mu.Lock()
	var do []func()
	for _, s := range w.sinks {
		if file == "" {
			do = append(do, s.settle)
		} else if s.has(file) {
			do = append(do, func() { s.stopFrom(file) })
		}
	}
	w.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, f := range do {
			f()
		}
	}()
	if !within(done, stopLimit) {
		log.Printf("log driver: %s is not in the log after %v", file, stopLimit)
	}
	return nil
}

func (s *sink) has(file string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.Feeds {
		if f.File == file {
			return true
		}
	}
	return false
}

// Read is dockerd's: somebody reads a container's log with docker logs. It is told what the file at the
// log's path holds; what was rotated away is the kubelet's.
func (w *Worker) Read(ctx context.Context, options map[string]string, r logdriver.Range, send func(*logdriver.Entry) error) error {
	s := w.sink(options[keyOption])
	if s == nil {
		return fmt.Errorf("no container of gantry's: %s=%q", keyOption, options[keyOption])
	}
	if s.LogPath == "" || strings.HasSuffix(s.LogPath, "/") {
		return nil
	}
	return (&logReader{s: s, Range: r, send: send}).run(ctx)
}
