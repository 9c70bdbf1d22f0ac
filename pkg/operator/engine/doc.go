// Package engine is how the operator sees the engine, the replicators of the nodes. Watcher asks all nodes for their
// groups every two seconds and keeps the last answers as a View, which never changes. After a call the caller refreshes
// the view of that node; a look that was under way at that time does not undo it. Changes names what differs between
// two views.
//
// A node that does not answer is silent: it keeps the groups of its last answer, and may have others. What a silent
// node has is not known to be gone.
//
// It decides nothing. Watcher and View are safe for concurrent use.
package engine
