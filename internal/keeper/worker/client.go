package worker

import (
	"context"
	"log"
	"os"

	"golang.org/x/sys/unix"

	"gantry/internal/keeper/wire"
)

// client is one connection. Every request of it runs on its own; requests on one key wait for each
// other.
type client struct {
	w      *Worker
	conn   *wire.Conn
	ctx    context.Context // ends with the connection
	cancel context.CancelFunc
}

func (cl *client) serve() {
	cl.ctx, cl.cancel = context.WithCancel(context.Background())
	defer func() {
		cl.cancel()
		_ = cl.conn.Close()
	}()
	for {
		f, fds, err := cl.conn.Receive()
		if err != nil {
			return
		}
		go cl.handle(f, fds)
	}
}

func (cl *client) handle(f *wire.Frame, fds []int) {
	switch f.Op {
	case wire.OpExec:
		cl.exec(f, fds)
		return
	case wire.OpAttach:
		cl.attach(f, fds)
		return
	}
	wire.CloseAll(fds)
	switch f.Op {
	case wire.OpExecWait:
		cl.execWait(f)
	case wire.OpWatch:
		cl.watch(f)
	case wire.OpPing:
		cl.reply(f, nil, nil)
	case wire.OpList:
		cl.reply(f, cl.w.list(), nil)
	case wire.OpLog:
		var req wire.Log
		err := f.Into(&req)
		if err == nil {
			err = cl.locked(req.Key, func() error { return cl.w.openLog(req) })
		}
		cl.reply(f, nil, err)
	case wire.OpCreate:
		var req wire.Create
		err := f.Into(&req)
		if err != nil {
			cl.reply(f, nil, err)
			return
		}
		var pid wire.Pid
		err = cl.locked(req.Key, func() (err error) { pid, err = cl.w.create(req); return err })
		cl.reply(f, pid, err)
	default:
		cl.reply(f, nil, cl.target(f))
	}
}

// target handles the requests that name a container and answer nothing.
func (cl *client) target(f *wire.Frame) error {
	var t wire.Target
	var do func() error
	before := func() {} // what does not wait for the key's lock
	switch f.Op {
	case wire.OpStart:
		do = func() error { return cl.w.start(t.Key) }
	case wire.OpDelete:
		do = func() error { return cl.w.delete(t.Key) }
		before = func() { cl.w.giveUp(t.Key) }
	case wire.OpReopen:
		do = func() error { return cl.w.reopen(t.Key) }
	case wire.OpUnlog:
		do = func() error { return cl.w.closeLog(t.Key) }
		before = func() {
			if s := cl.w.sink(t.Key); s != nil {
				s.log.giveUp()
			}
		}
	case wire.OpSignal: // does not wait for a create or delete that hangs
	default:
		return wire.Errorf(wire.CodeInvalid, "the keeper knows no operation %q", f.Op)
	}
	if err := f.Into(&t); err != nil {
		return err
	}
	if do == nil {
		return cl.w.signal(t)
	}
	before()
	return cl.locked(t.Key, do)
}

// locked runs do under the key's lock, which it does not get once the client has gone.
func (cl *client) locked(key string, do func() error) error {
	unlock, err := cl.w.keys.Lock(cl.ctx, key)
	if err != nil {
		return wire.Errorf(wire.CodeUnavailable, "%s: %v", key, err)
	}
	defer unlock()
	return do()
}

func (cl *client) reply(req *wire.Frame, body any, err error, fds ...int) {
	f, encodeErr := wire.Reply(req.ID, body, err)
	if encodeErr != nil {
		f = &wire.Frame{ID: req.ID}
		f.SetError(encodeErr)
	}
	_ = cl.conn.Send(f, fds...) // a client that has gone asks again
}

// finish sends the last frame of an exec or attach.
func (cl *client) finish(req *wire.Frame, e wire.Exit, err error) {
	f := &wire.Frame{ID: req.ID, Op: wire.OpEnd}
	if err != nil {
		f.SetError(err)
	} else if err := f.SetBody(e); err != nil {
		f.SetError(err)
	}
	_ = cl.conn.Send(f)
}

func (cl *client) exec(f *wire.Frame, fds []int) {
	files := make([]*os.File, len(fds))
	for i, fd := range fds {
		files[i] = os.NewFile(uintptr(fd), "stdio")
	}
	var req wire.ExecRequest
	var x *session
	master := -1
	err := f.Into(&req)
	if err == nil {
		x, master, err = cl.w.exec(req, files)
	}
	for _, file := range files {
		_ = file.Close()
	}
	if err != nil {
		cl.reply(f, nil, err)
		return
	}
	if master >= 0 {
		cl.reply(f, wire.Pid{Pid: x.Pid}, nil, master)
		_ = unix.Close(master)
	} else {
		cl.reply(f, wire.Pid{Pid: x.Pid}, nil)
	}
	cl.await(f, x)
}

// execWait continues with an exec that the client began with a worker that died.
func (cl *client) execWait(f *wire.Frame) {
	var t wire.Target
	if err := f.Into(&t); err != nil {
		cl.reply(f, nil, err)
		return
	}
	x := cl.w.session(t.Key)
	if x == nil {
		cl.reply(f, nil, wire.Errorf(wire.CodeAborted, "the keeper's worker was replaced while it began the exec"))
		return
	}
	x.ask.Do(func() { close(x.asked) })
	cl.reply(f, wire.Pid{Pid: x.Pid}, nil)
	cl.await(f, x)
}

// await sends the exec's end. Its process ends with its client.
func (cl *client) await(f *wire.Frame, x *session) {
	select {
	case <-x.ended:
	case <-cl.ctx.Done():
		if err := x.kill(); err != nil {
			log.Print(err)
		}
		<-x.ended
	}
	cl.finish(f, x.exit, nil)
	x.forget()
}

func (cl *client) attach(f *wire.Frame, fds []int) {
	var req wire.AttachRequest
	if err := f.Into(&req); err != nil {
		wire.CloseAll(fds)
		cl.reply(f, nil, err)
		return
	}
	v, input, err := cl.w.attach(req, fds)
	if err != nil {
		cl.reply(f, nil, err)
		return
	}
	if input >= 0 {
		cl.reply(f, nil, nil, input)
		_ = unix.Close(input)
	} else {
		cl.reply(f, nil, nil)
	}
	select {
	case <-v.done:
	case <-cl.ctx.Done():
	}
	v.leave()
	e := wire.Exit{}
	if s := v.c.state(); s.Exit != nil {
		e = *s.Exit
	}
	cl.finish(f, e, v.cause)
}

// watchBacklog is how many events wait for a client that does not read.
const watchBacklog = 4096

func (cl *client) watch(f *wire.Frame) {
	events := make(chan wire.Event, watchBacklog)
	cl.w.mu.Lock()
	cl.w.watchers[cl.conn] = events
	cl.w.mu.Unlock()
	defer func() {
		cl.w.mu.Lock()
		delete(cl.w.watchers, cl.conn)
		cl.w.mu.Unlock()
		_ = cl.conn.Close()
	}()
	cl.reply(f, nil, nil)
	for {
		select {
		case <-cl.ctx.Done():
			return
		case e, ok := <-events:
			if !ok {
				return
			}
			frame := &wire.Frame{ID: f.ID, Op: wire.OpEvent}
			if err := frame.SetBody(e); err != nil {
				return
			}
			if err := cl.conn.Send(frame); err != nil {
				return
			}
		}
	}
}
