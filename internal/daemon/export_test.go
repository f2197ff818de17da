package daemon

// What the tests look at from inside.
var (
	LockState         = lockState
	RemoveStaleSocket = removeStaleSocket
)

// LockName is the lock's file.
const LockName = lockName
