// Package action carries out GroupActions.
//
//   - Reconciler (action.go) does one pass over an action: it finds the groups at the engine, does the deed to each,
//     and measures what came of it. Each step is in the status before its call, so an operator that was killed goes on
//     where it was. If the API server does not take the record, the call is not made.
//   - deeds.go has what each type of action does to one group, and how the engine shows that it is done. A new type is
//     an entry of deeds.
//   - testfailover.go makes a test failover: views, a namespace with claims, checks as Jobs. testremove.go removes
//     everything, also after a failure or a deletion. Package drill has the objects.
//
// Errors that a repetition can mend are waits (errWait): the action stays as it is and says what it waits for. Other
// errors end the action as failed.
//
// Reconciler is safe for concurrent use on different actions.
package action
