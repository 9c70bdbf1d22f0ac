// Package credentials makes what the parts of one cluster know each other by, and keeps it in Secrets: a certificate of
// the nodes' drivers, one of the controller, and the token that readers of metrics show. A Job of the chart runs it
// before an installation, and a CronJob every day.
//
// No process keeps a key of an authority. Each pair of certificates has an authority of its own, which signs the two
// and is forgotten with the process that made it. So what is in the Secrets can pose as a node or as the controller
// of this cluster, until it ends, and can sign nothing.
//
// It is not a certificate manager: it makes nothing for the links between sites, whose authority all sites share.
//
// # Steps
//
// A pod sees a changed Secret minutes later, and the two sides not at once. So a pair is replaced in steps, each of
// which takes place when the Secrets have been as they are for settle (an hour). With A and B for authorities:
//
//	steady    both trust A, and show what A signed
//	prepared  both trust A and B, and show what A signed; what B signed is beside it (next.crt, next.key)
//	switched  both trust A and B, and show what B signed
//	steady    both trust B, and show what B signed
//
// At every instant, also if the process ends between two writes, each side trusts what the other shows, in the Secrets
// as they are and as they were before the last step. Certificates that do not fit together, of which one is missing or
// has ended, are replaced at once: nothing works with them that could be interrupted.
//
// A Secret without the label of this package belongs to another owner, and is an error.
//
// # Concurrency
//
// Two processes may run at once: the API server refuses the second write of one version, and the run begins anew with
// what is there.
package credentials
