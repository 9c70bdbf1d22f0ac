// Package pause waits: for a time that a context can cut short, and for something to be as it should, for a time.
package pause

import (
	"context"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// For waits for d, or less when the context ends. It reports whether the context still runs.
func For(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return ctx.Err() == nil
	}
}

// Poll repeats try at short intervals while it returns an error that again accepts, for about as long as patience. It
// returns the last error of try.
func Poll(patience time.Duration, again func(error) bool, try func() error) error {
	every := backoff.NewExponentialBackOff()
	every.InitialInterval, every.MaxInterval = time.Millisecond, 50*time.Millisecond
	_, err := backoff.Retry(context.Background(), func() (struct{}, error) {
		err := try()
		if err != nil && !again(err) {
			err = backoff.Permanent(err)
		}
		return struct{}{}, err
	}, backoff.WithBackOff(every), backoff.WithMaxElapsedTime(patience))
	return err
}
