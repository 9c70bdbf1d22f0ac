package workload

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// Ack is an order that the application was told is committed in both databases.
type Ack struct {
	ID     int64
	Client int
	// Start is before the first write of the order, End after the second commit.
	Start, End time.Time
}

// Latency is the time that one order took.
func (a Ack) Latency() time.Duration { return a.End.Sub(a.Start) }

// appendTo encodes an acknowledgement as a line. The start is the End minus the latency, because only differences of
// the monotonic clock are exact.
func (a Ack) appendTo(b []byte) []byte {
	return fmt.Appendf(b, "%d %d %d %d\n", a.ID, a.Client, a.End.UnixNano(), a.Latency().Nanoseconds())
}

// ReadAcks decodes a log of acknowledgements as Run writes it and calls add for each. A last line without its end, as
// a killed writer leaves it, is not an acknowledgement and is left out.
func ReadAcks(r io.Reader, add func(Ack)) error {
	in := bufio.NewReader(r)
	for n := 1; ; n++ {
		line, err := in.ReadString('\n')
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("acknowledgement log, line %d: %w", n, err)
		}
		var id, endNanos, latencyNanos int64
		var client int
		if _, err := fmt.Sscanf(line, "%d %d %d %d\n", &id, &client, &endNanos, &latencyNanos); err != nil {
			return fmt.Errorf("acknowledgement log, line %d: %q: %w", n, line, err)
		}
		end := time.Unix(0, endNanos)
		add(Ack{ID: id, Client: client, Start: end.Add(-time.Duration(latencyNanos)), End: end})
	}
}

// RunOptions say how much to run.
type RunOptions struct {
	Clients int
	// Seed decides which items are bought.
	Seed uint64
	// FirstID is the number of the first order.
	FirstID int64
	// Log takes a line for each acknowledged order; a write of one line is one call.
	Log io.Writer
}

// Placer takes orders; see Shop.
type Placer interface {
	Place(ctx context.Context, client int, o Order) error
}

// Run places orders with all clients until ctx ends, which is no error. An order that has begun then is finished.
func Run(ctx context.Context, shop Placer, opts RunOptions) error {
	var next atomic.Int64
	next.Store(opts.FirstID)
	var logMu sync.Mutex
	// Orders run under a context of their own: one that is cut off in its middle would be neither an acknowledged
	// order nor a crash.
	group, orders := errgroup.WithContext(context.WithoutCancel(ctx))
	for client := range max(opts.Clients, 1) {
		group.Go(func() error {
			rng := rand.New(rand.NewPCG(opts.Seed, uint64(client)))
			var line []byte
			for ctx.Err() == nil && orders.Err() == nil {
				o := Order{ID: next.Add(1) - 1, Item: rng.IntN(items), Quantity: 1 + rng.IntN(9), Details: details(rng)}
				ack := Ack{ID: o.ID, Client: client, Start: time.Now()}
				if err := shop.Place(orders, client, o); err != nil {
					return err
				}
				ack.End = time.Now()
				line = ack.appendTo(line[:0])
				logMu.Lock()
				_, err := opts.Log.Write(line)
				logMu.Unlock()
				if err != nil {
					return fmt.Errorf("logging order %d: %w", o.ID, err)
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// detailsBytes makes a row of sales as large as one with an address and a few lines.
const detailsBytes = 200

func details(rng *rand.Rand) string {
	b := make([]byte, detailsBytes)
	for i := range b {
		b[i] = byte('a' + rng.IntN(26))
	}
	return string(b)
}
