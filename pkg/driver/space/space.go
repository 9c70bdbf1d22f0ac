// Package space accounts for the space of a pool: what its file system has, what is promised to volumes, journals and
// snapshots (ledger.go), what running calls have reserved (reservations.go), and whether there is room for more.
//
// Everything in the accounts comes from the records and the file system, so it is the same after a crash. Only the
// reservations of running calls are in memory.
package space

import (
	"github.com/slipstream-storage/slipstream/pkg/driver/store"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// Options say whose space is accounted for, for messages, and how much of it may be promised.
type Options struct {
	NodeID   string
	PoolDir  string
	Capacity CapacityOptions
}

// Accounts are the accounts of one pool. They are safe for concurrent use.
type Accounts struct {
	// Capacity says how much of the pool may be promised. It must not be changed while calls run.
	Capacity CapacityOptions

	opts  Options
	store *store.Store
	fs    vfs.FS
	// Reserved are the reservations of running calls.
	Reserved reservations
	// Sharing knows whether the file system can share blocks between files.
	Sharing blockSharing
}

// New returns the accounts of a pool.
func New(st *store.Store, fsys vfs.FS, opts Options) *Accounts {
	return &Accounts{Capacity: opts.Capacity, opts: opts, store: st, fs: fsys,
		Reserved: reservations{Volumes: map[string]reservation{}}}
}
