package backup

import (
	"context"
	"time"

	"k8s.io/klog/v2"
)

// interval is how often a pass runs. It is a part of the five seconds in which a claim is to be bound.
const interval = time.Second

// Runner runs passes. It implements manager.Runnable, and runs where the operator is the leader.
type Runner struct {
	Teller *Teller
	Waiter *Waiter
	// View returns what the nodes last said; ok is false until every node was asked once.
	View func() (view View, ok bool)
}

// Start runs passes until ctx is done.
func (r *Runner) Start(ctx context.Context) error {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		if view, ok := r.View(); ok {
			if err := r.Teller.Pass(ctx, view); err != nil {
				klog.ErrorS(err, "Claims cannot be told to the engine")
			}
			if err := r.Waiter.Pass(ctx, view); err != nil {
				klog.ErrorS(err, "Claims of other sites cannot be made")
			}
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
}
