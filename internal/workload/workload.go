// Package workload is an application that notices when its volumes are not of one instant: a shop with two databases
// on two volumes.
//
// An order takes its goods from the stock database first, with a movement row that carries the order's number, and
// commits. Only then it is written to the sales database, and committed. So at every instant, and in every state that
// a power failure can leave, each order has its movement. A copy of the two volumes in which an order lacks its
// movement shows the second write without the first, which had been durable before the second began.
//
// The databases are SQLite files or PostgreSQL servers, both with their default promise that a commit is durable.
// The databases can be on two machines (ServeStock, OpenSales).
//
// Next to the databases, outside the volumes, the workload logs each order it was told is committed, with times (Ack).
// Against that log a check after a failover can say what was lost (Check).
//
// It is not a benchmark of databases: its load is what it takes to show order and to compare two block devices.
//
// Concurrency: a Shop takes one goroutine per client number; Run does that.
package workload

import (
	"context"
	"fmt"
)

// Kind selects the databases.
type Kind string

// The kinds. Their names are the values of the demo's --workload flag.
const (
	SQLite   Kind = "sqlite"
	Postgres Kind = "postgres"
)

// ParseKind checks a kind's name.
func ParseKind(s string) (Kind, error) {
	switch k := Kind(s); k {
	case SQLite, Postgres:
		return k, nil
	}
	return "", fmt.Errorf("unknown workload %q: the workloads are %s and %s", s, SQLite, Postgres)
}

// DefaultClients is how many clients place orders at once. SQLite has one writer per database by nature.
func (k Kind) DefaultClients() int {
	if k == Postgres {
		return 4
	}
	return 1
}

// Dirs is where a shop lives. The directories exist.
type Dirs struct {
	// Stock and Sales are the mount points of the two volumes.
	Stock, Sales string
	// Run takes sockets and server logs; it is not on a replicated volume. Its path has to be short, because the path
	// of a Unix socket below it may have 107 bytes.
	Run string
}

// Order is one purchase.
type Order struct {
	// ID is unique over all runs on the same databases.
	ID       int64
	Item     int
	Quantity int
	// Details pads the rows to a size that real ones have.
	Details string
}

// Contents is what the two databases hold.
type Contents struct {
	// Orders and Movements are order numbers, ascending.
	Orders, Movements []int64
	// Taken is how much the stock's quantities fell since the start; MovedOut is the sum of the movements. They are
	// equal unless the stock database itself is inconsistent.
	Taken, MovedOut int64
	// Damage is what the databases' own integrity checks found, a sentence each.
	Damage []string
}

// Shop is the two databases, open.
type Shop interface {
	// Place commits an order's movement to the stock database and then the order to the sales database. After an error
	// neither, the first, or both may be there. client is below the number of clients the shop was opened for; calls
	// with the same client do not overlap.
	Placer
	// Read checks the databases' integrity and reads all of them. Nothing is placed at the same time.
	Read(ctx context.Context) (Contents, error)
	// Close closes the databases and ends their servers, if they have any.
	Close() error
}

// items is how many articles the stock has, and initialQuantity of each there is in the beginning; more than can be
// sold in any run.
const (
	items           = 1000
	initialQuantity = 1_000_000_000
)

// Open opens the databases of a kind in dirs for a number of clients, creates what is missing, and lets a database
// recover that a crash left behind. Only one process may have a shop open.
func Open(ctx context.Context, kind Kind, dirs Dirs, clients int) (Shop, error) {
	switch kind {
	case SQLite:
		return openSQLite(ctx, dirs)
	case Postgres:
		return openPostgres(ctx, dirs, clients)
	}
	_, err := ParseKind(string(kind))
	return nil, err
}
