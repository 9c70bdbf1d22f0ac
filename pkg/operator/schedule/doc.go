// Package schedule makes the GroupActions of GroupActionSchedules at their times, one at a time, deletes old ones, and
// says whether the last success is recent enough (condition OnTime). Package action carries them out.
//
// Reconciler has no state: the name of an action follows from the time that it is due at.
package schedule
