package worker

// Point is a moment after which a worker that dies must lose nothing: a part of an operation was
// done, or its record was written.
type Point string

const (
	createDirectory Point = "create/directory"
	createIntent    Point = "create/intent" // the record says that the create began
	createStreams   Point = "create/streams"
	createRuntime   Point = "create/runtime" // the OCI runtime has created it
	createClaim     Point = "create/claim"   // the holder waits for its end
	createRecord    Point = "create/record"

	startIntent  Point = "start/intent"
	startHeard   Point = "start/heard" // the process goes on, and the OCI runtime calls it created
	startRuntime Point = "start/runtime"
	restoreClaim Point = "start/restored" // the holder waits for the end of what was restored
	startRecord  Point = "start/record"

	signalCgroup Point = "signal/cgroup"
	signalSent   Point = "signal/sent"

	exitHeard     Point = "exit/heard"
	exitDrained   Point = "exit/drained" // the output up to it is in the log
	exitAnnounced Point = "exit/announced"

	execDirectory Point = "exec/directory"
	execProcess   Point = "exec/process" // its description is written
	execRuntime   Point = "exec/runtime"
	execRecord    Point = "exec/record"
	execEnded     Point = "exec/ended"

	reopenFile Point = "reopen/file" // the new file is open
	reopenHeld Point = "reopen/held" // the holder keeps it

	deleteRuntime   Point = "delete/runtime"
	deleteCgroup    Point = "delete/cgroup"
	deleteStreams   Point = "delete/streams"
	deleteDirectory Point = "delete/directory"

	recoverRecord  Point = "recover/record"  // of a container is read
	recoverStreams Point = "recover/streams" // are moved again
	recoverClaim   Point = "recover/claim"   // the holder waits for its end
	recoverExit    Point = "recover/exit"    // what ended meanwhile is announced
	recoverExec    Point = "recover/exec"    // its session is taken over
)

// Points lists every point there is.
func Points() []Point {
	return []Point{
		createDirectory, createIntent, createStreams, createRuntime, createClaim, createRecord,
		startIntent, startHeard, startRuntime, startRecord, restoreClaim,
		signalCgroup, signalSent,
		exitHeard, exitDrained, exitAnnounced,
		execDirectory, execProcess, execRuntime, execRecord, execEnded,
		reopenFile, reopenHeld,
		deleteRuntime, deleteCgroup, deleteStreams, deleteDirectory,
	}
}

// RecoveryPoints lists those of a worker that takes over from one that died.
func RecoveryPoints() []Point {
	return []Point{recoverRecord, recoverStreams, recoverClaim, recoverExit, recoverExec}
}

func (w *Worker) reached(p Point) {
	if w.opt.Hook != nil {
		w.opt.Hook(p)
	}
}
