// Package operatortest has what tests of the operator share: Site, a cluster in memory with the reconcilers that the
// test gives it; Node, a replicator in memory with the rules of the real one (node.go, deeds.go); and Death, which ends
// the operator at one of its calls. objects.go has the objects of a cluster.
//
// A Site is used by one goroutine. A Node may also be called by reconcilers of others.
package operatortest
