package replication

import "fmt"

// copyState is where the copy of a snapshot's image is.
//
//	running -> complete             all is copied and durable
//	running -> failing -> failed    it is given up; then its log is gone, so that a restart knows it
type copyState int

const (
	// copyRunning: there are extents to copy, or to make durable.
	copyRunning copyState = iota
	// copyComplete: all is copied and durable, and the image takes no more.
	copyComplete
	// copyFailing: the copy is given up; a restart would go on with it.
	copyFailing
	// copyFailed: the copy is given up, also after a restart.
	copyFailed
)

func (s copyState) String() string {
	switch s {
	case copyRunning:
		return "running"
	case copyComplete:
		return "complete"
	case copyFailing:
		return "failing"
	case copyFailed:
		return "failed"
	}
	return fmt.Sprintf("copyState(%d)", int(s))
}

// copyOutcome is the state of a copy, and why it failed. Its changes return false, and change nothing, where they
// cannot be made.
type copyOutcome struct {
	state  copyState
	reason error // set while failing and failed
}

func (o *copyOutcome) change(from, to copyState) bool {
	if o.state != from {
		return false
	}
	o.state = to
	return true
}

// complete ends a copy that runs.
func (o *copyOutcome) complete() bool { return o.change(copyRunning, copyComplete) }

// fail gives up a copy that runs.
func (o *copyOutcome) fail(reason error) bool {
	if !o.change(copyRunning, copyFailing) {
		return false
	}
	o.reason = reason
	return true
}

// failureStored notes that a restart knows of the failure.
func (o *copyOutcome) failureStored() bool { return o.change(copyFailing, copyFailed) }

// hasFailed reports whether the copy was given up.
func (o *copyOutcome) hasFailed() bool { return o.state == copyFailing || o.state == copyFailed }

// isFinal reports whether there is nothing more to do.
func (o *copyOutcome) isFinal() bool { return o.state == copyComplete || o.state == copyFailed }

// cutsFileState is how the file of cuts compares with the cuts in memory.
//
//	saved -> behind              something changed in memory
//	saved, behind -> unknown     a write failed, and the file cannot be read or has something else
//	any -> saved                 the file was written
type cutsFileState int

const (
	// cutsFileSaved: the file has what is in memory.
	cutsFileSaved cutsFileState = iota
	// cutsFileBehind: the file is to be written when there is an occasion.
	cutsFileBehind
	// cutsFileUnknown: a failed write may have left a cut in the file that was not taken. Until the file is written again,
	// nothing may change an image.
	cutsFileUnknown
)

func (s cutsFileState) String() string {
	switch s {
	case cutsFileSaved:
		return "saved"
	case cutsFileBehind:
		return "behind"
	case cutsFileUnknown:
		return "unknown"
	}
	return fmt.Sprintf("cutsFileState(%d)", int(s))
}

// changed notes that something changed in memory. An unknown file stays unknown.
func (s *cutsFileState) changed() { *s = max(*s, cutsFileBehind) }

// written notes that the file was written.
func (s *cutsFileState) written() { *s = cutsFileSaved }

// writeFailed notes that a write failed; intact says that the file is as it was before.
func (s *cutsFileState) writeFailed(intact bool) {
	if !intact {
		*s = cutsFileUnknown
	}
}
