// Package plan decides for one namespace, without a call and without state.
//
//   - Input is what is known: the objects of the namespace, and the View of the engine.
//   - Make (plan.go) says of each ConsistencyGroup which groups at the engine are its own, which claims are members,
//     and which calls of the engine are missing (Op). A call is missing as long as the engine does not show its effect.
//   - Shards (shards.go) are the decisions about one group over several nodes: numbers, and why there is none.
//   - Status (status.go, writeorder.go) returns the status of a ConsistencyGroup with its conditions.
//   - names.go has the names of groups at the engine.
//
// Package operator makes the calls and writes the statuses. Functions are safe for concurrent use.
package plan
