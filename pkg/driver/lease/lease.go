// Package lease keeps two controllers from creating one name on two nodes.
//
// A controller leases the name on all nodes before it asks which of them has it, and a node creates a volume only under
// a lease that is in force. Of two controllers the later one therefore finds the other's lease, its running creation,
// or what it has created. A controller that was suspended past the end of its lease is refused.
//
// Leases are in memory. A restarted node has none, and refuses creations under older ones.
package lease

import (
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/api/locatepb"
)

// Life is how long a lease is in force after it was taken. It covers the time between a controller's question to all
// nodes and its call to one of them. A slower controller is refused and starts again.
const Life = 15 * time.Second

// Key is a name that only the holder of its lease may create.
type Key struct {
	Kind  locatepb.Key_Kind
	Value string
}

func (k Key) String() string {
	switch k.Kind {
	case locatepb.Key_VOLUME_NAME:
		return "volume name " + k.Value
	case locatepb.Key_CONSISTENCY_GROUP:
		return "consistency group " + k.Value
	}
	return k.Kind.String() + " " + k.Value
}

// Table has the leases of one node. It is safe for concurrent use.
type Table struct {
	now func() time.Time

	mu      sync.Mutex
	byKey   map[Key]*entry
	byToken map[string]*entry
}

type entry struct {
	token   string
	keys    []Key
	expires time.Time
	working int // running creations under it; the lease is in force while there is one
}

// NewTable returns a table without leases. now is the clock.
func NewTable(now func() time.Time) *Table {
	return &Table{now: now, byKey: map[Key]*entry{}, byToken: map[string]*entry{}}
}

// Take leases keys to token, in addition to the keys that it holds already, and prolongs its lease. The error is
// Aborted if another token holds one of them; then nothing is leased.
func (t *Table) Take(token string, keys []Key) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sweep()
	for _, key := range keys {
		if other := t.byKey[key]; other != nil && other.token != token {
			what := "has leased it"
			if other.working > 0 {
				what = "is creating it"
			}
			return status.Errorf(codes.Aborted, "%s: another call, or another controller, %s on this node; call again later",
				key, what)
		}
	}
	lease := t.byToken[token]
	if lease == nil {
		lease = &entry{token: token}
		t.byToken[token] = lease
	}
	lease.expires = t.now().Add(Life)
	for _, key := range keys {
		if t.byKey[key] == nil {
			t.byKey[key] = lease
			lease.keys = append(lease.keys, key)
		}
	}
	return nil
}

// Use starts a creation of keys under token's lease. The caller calls done when it has ended. The error is Aborted if
// token's lease is not in force or does not cover all keys.
func (t *Table) Use(token string, keys []Key) (done func(), err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sweep()
	lease := t.byToken[token]
	for _, key := range keys {
		if lease == nil || t.byKey[key] != lease {
			return nil, status.Errorf(codes.Aborted, "%s: the caller's lease on it is not in force on this node; lease it "+
				"again on all nodes (Locate)", key)
		}
	}
	lease.working++
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		lease.working--
	}, nil
}

// GiveUp ends token's lease. A running creation under it keeps it in force until the creation has ended.
func (t *Table) GiveUp(token string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if lease := t.byToken[token]; lease != nil {
		lease.expires = t.now()
	}
	t.sweep()
}

// sweep removes leases that are not in force. The caller holds mu.
func (t *Table) sweep() {
	now := t.now()
	for token, lease := range t.byToken {
		if lease.working > 0 || now.Before(lease.expires) {
			continue
		}
		for _, key := range lease.keys {
			delete(t.byKey, key)
		}
		delete(t.byToken, token)
	}
}
