package native

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"gantry/internal/engine"
)

// streams connects a client's streams to our ends of pipes or of a terminal.
type streams struct {
	io      engine.IO
	input   *os.File // written; the terminal's master where there is one
	tty     bool     // input is a terminal's master
	outputs []*output
	done    chan struct{} // closed by close: resizing ends
	wg      sync.WaitGroup
}

// pipes makes a pipe for every stream that the client wants, keeps our ends and returns the others.
func (s *streams) pipes() (stdin, stdout, stderr *os.File, err error) {
	if s.io.Stdin != nil {
		if stdin, s.input, err = os.Pipe(); err != nil {
			return nil, nil, nil, err
		}
		if err = forProgram(stdin); err != nil {
			return nil, nil, nil, errors.Join(err, stdin.Close())
		}
	}
	if stdout, err = s.outputPipe(s.io.Stdout); err == nil {
		stderr, err = s.outputPipe(s.io.Stderr)
	}
	if err != nil {
		closeAll(stdin, stdout)
		return nil, nil, nil, err
	}
	return stdin, stdout, stderr, nil
}

func (s *streams) outputPipe(to io.Writer) (*os.File, error) {
	if to == nil {
		return nil, nil
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	s.outputs = append(s.outputs, &output{file: r, to: to})
	if err := forProgram(w); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

// terminal takes over a terminal's master: input, output and size.
func (s *streams) terminal(master *os.File) {
	s.input, s.tty = master, true
	if s.io.Stdout != nil {
		s.outputs = append(s.outputs, &output{file: master, to: s.io.Stdout, terminal: true})
	}
}

// copyInput closes a pipe at the end of the client's input, so that the process sees it. A terminal's
// master stays open: closing it would hang the terminal up.
func (s *streams) copyInput() {
	copyInput(s.input, s.io.Stdin)
	if !s.tty {
		_ = s.input.Close()
	}
}

func (s *streams) start() {
	s.done = make(chan struct{})
	if s.io.Stdin != nil && s.input != nil {
		go s.copyInput()
	}
	if s.io.Resize != nil && s.input != nil {
		go resize(s.input, s.io.Resize, s.done)
	}
	for _, o := range s.outputs {
		s.wg.Go(o.copy)
	}
}

// deliverLimit bounds how long the output of a process that ended in time may take behind its deadline: it is there, and
// only a client that takes nothing can be in its way.
const deliverLimit = 10 * time.Second

// finish returns when the output was delivered that there was when the process ended, or whoever wanted it has left. What
// is left deliverLimit after ctx's deadline is ctx's error.
func (s *streams) finish(ctx context.Context) error {
	for _, o := range s.outputs {
		o.end()
	}
	delivered := make(chan struct{})
	go func() { s.wg.Wait(); close(delivered) }()
	select {
	case <-delivered:
		return nil
	case <-ctx.Done():
	}
	if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return nil
	}
	select {
	case <-delivered:
		return nil
	case <-time.After(deliverLimit):
		return context.Cause(ctx)
	}
}

func (s *streams) close() {
	if s.done != nil {
		close(s.done)
	}
	closeAll(s.input)
	for _, o := range s.outputs {
		_ = o.file.Close()
	}
}

func closeAll(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close()
		}
	}
}

func resize(terminal *os.File, sizes <-chan engine.Size, done <-chan struct{}) {
	conn, err := terminal.SyscallConn()
	if err != nil {
		return
	}
	for {
		select {
		case size, ok := <-sizes:
			if !ok {
				return
			}
			_ = conn.Control(func(fd uintptr) {
				_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Height, Col: size.Width})
			})
		case <-done:
			return
		}
	}
}
