package replication

import "fmt"

// keepState is where something is that keeps what an image was: the copy of a snapshot, a set of preserved images, a
// view.
//
//	running -> complete             it needs nothing of the image any more: a copy, with all of it copied and durable
//	running -> failing -> failed    it is given up; then its log is gone, so that a restart knows it
type keepState int

const (
	// keepRunning: it takes extents that are about to change.
	keepRunning keepState = iota
	// keepComplete: it takes no more.
	keepComplete
	// keepFailing: it is given up; a restart would go on with it.
	keepFailing
	// keepFailed: it is given up, also after a restart.
	keepFailed
)

func (s keepState) String() string {
	switch s {
	case keepRunning:
		return "running"
	case keepComplete:
		return "complete"
	case keepFailing:
		return "failing"
	case keepFailed:
		return "failed"
	}
	return fmt.Sprintf("keepState(%d)", int(s))
}

// keepOutcome is the state, and why it failed. Its changes return false, and change nothing, where they cannot be made.
type keepOutcome struct {
	state  keepState
	reason error // set while failing and failed
}

func (o *keepOutcome) change(from, to keepState) bool {
	if o.state != from {
		return false
	}
	o.state = to
	return true
}

// complete ends what runs.
func (o *keepOutcome) complete() bool { return o.change(keepRunning, keepComplete) }

// fail gives up what runs.
func (o *keepOutcome) fail(reason error) bool {
	if !o.change(keepRunning, keepFailing) {
		return false
	}
	o.reason = reason
	return true
}

// failureStored notes that a restart knows of the failure.
func (o *keepOutcome) failureStored() bool { return o.change(keepFailing, keepFailed) }

// hasFailed reports whether it was given up.
func (o *keepOutcome) hasFailed() bool { return o.state == keepFailing || o.state == keepFailed }

// isFinal reports whether there is nothing more to do.
func (o *keepOutcome) isFinal() bool { return o.state == keepComplete || o.state == keepFailed }
