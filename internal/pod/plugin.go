package pod

// Moment is a moment in the life of a pod or of a container at which plugins (NRI) are told.
type Moment string

// The moments. An error at Run, Update, Create and Start refuses; at the others it can only be
// reported: what was asked for has happened, or has to.
const (
	MomentRun     Moment = "run"     // a sandbox is whole, with its network, and is not published yet
	MomentUpdate  Moment = "update"  // new resources are asked for
	MomentUpdated Moment = "updated" // and are in force
	MomentCreate  Moment = "create"  // nothing of the container was made yet
	MomentCreated Moment = "created"
	MomentStart   Moment = "start"
	MomentStarted Moment = "started"
	MomentStop    Moment = "stop"   // the container has ended; the containers of the sandbox have
	MomentRemove  Moment = "remove" // everything of it is gone, or was never made
)

// SandboxEvent is what plugins hear of a sandbox.
type SandboxEvent struct {
	At      Moment
	Sandbox *Sandbox
	// Overhead and Resources are what is asked for at MomentUpdate; each may be nil.
	Overhead  *Resources
	Resources *Resources
}

// ContainerEvent is what plugins hear of a container.
type ContainerEvent struct {
	At        Moment
	Sandbox   *Sandbox
	Container *Container // at MomentCreate without what the engine makes
	// Image finds the container's image; nil when the store has it no more.
	Image     func() *Image
	Resources *Resources // what is asked for at MomentUpdate
}

// Answer is what plugins want done because of an event of a container.
type Answer struct {
	Adjustment *Adjustment       // at MomentCreate; nil changes nothing
	Resources  *Resources        // at MomentUpdate: in place of what was asked for; nil is that
	Updates    []ContainerUpdate // of other containers
}

// ContainerUpdate is a change of a container's resources that a plugin wants.
type ContainerUpdate struct {
	Container     string // the container's key, which plugins know it by
	Resources     Resources
	IgnoreFailure bool  // a failure fails nothing else
	Err           error // why it was not done; set by who had to do it
}
