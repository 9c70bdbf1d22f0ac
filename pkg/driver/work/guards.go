package work

import (
	"slices"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Guards is the set of objects that a call works on. A second call for the same object gets Aborted, as the CSI
// specification asks for, and does not wait. Calls that wait behind one that hangs in the kernel would keep a goroutine
// each, and with a global lock one hung volume would stop all others.
//
// It is safe for concurrent use.
type Guards struct {
	mu   sync.Mutex
	busy map[string]string // operation by key
}

// NewGuards returns an empty set.
func NewGuards() *Guards {
	return &Guards{busy: make(map[string]string)}
}

// Enter adds key, which is an object's id or another text that stands for it. The caller calls leave when the operation
// is over. If another operation works on key, err is a status error with Aborted and leave is nil.
func (g *Guards) Enter(key, operation string) (leave func(), err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if other, ok := g.busy[key]; ok {
		return nil, status.Errorf(codes.Aborted, "%s of %q: %s of the same volume is still running; call again later",
			operation, key, other)
	}
	g.busy[key] = operation
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.busy, key)
	}, nil
}

// Busy returns the keys that operations work on, sorted, each with its operation.
func (g *Guards) Busy() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	var busy []string
	for key, operation := range g.busy {
		busy = append(busy, operation+" of "+key)
	}
	slices.Sort(busy)
	return busy
}
