package workload

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"time"

	"github.com/slipstream-storage/slipstream/internal/words"
)

// Result is what a check of a recovered shop found.
type Result struct {
	Orders    int
	Movements int
	// LastOrder is the highest order number; 0 without orders.
	LastOrder int64
	// OrdersWithoutStock are orders whose movement is missing: proof that the two databases are not of one instant.
	OrdersWithoutStock int
	// MovementsWithoutOrder are orders caught between their two commits. At one instant that is at most one for each
	// client; more of them mean that the sales are from an earlier instant than the stock.
	MovementsWithoutOrder int
	// LostOrders were acknowledged and are gone. That is what asynchronous replication may lose, and all of it.
	LostOrders int
	// LostSpan is how far before the end the first lost order was acknowledged; 0 when nothing was lost.
	LostSpan time.Duration
	// OutOfOrder are lost orders that had been acknowledged before an order began that survived. Any is a breach of
	// write order.
	OutOfOrder int
	// Damage is what the databases' own checks found.
	Damage []string
	// IDs are the numbers of the orders that are there, ascending, and Lost those of the lost ones.
	IDs, Lost []int64
}

// Check opens the databases that a failure left, lets them recover, and compares them with the acknowledgements of all
// runs since their creation. end is when the failure happened.
//
// The error is for databases that cannot be opened or read; what is wrong with what was read is in the Result.
func Check(ctx context.Context, kind Kind, dirs Dirs, acks []Ack, end time.Time) (Result, error) {
	shop, err := Open(ctx, kind, dirs, 1)
	if err != nil {
		return Result{}, fmt.Errorf("opening the recovered databases: %w", err)
	}
	contents, err := shop.Read(ctx)
	if err := errors.Join(err, shop.Close()); err != nil {
		return Result{}, fmt.Errorf("reading the recovered databases: %w", err)
	}
	return compare(contents, acks, end), nil
}

func compare(c Contents, acks []Ack, end time.Time) Result {
	r := Result{Orders: len(c.Orders), Movements: len(c.Movements), Damage: c.Damage, IDs: c.Orders}
	if c.Taken != c.MovedOut {
		r.Damage = append(r.Damage,
			fmt.Sprintf("stock database: quantities fell by %d but movements add up to %d", c.Taken, c.MovedOut))
	}
	movements := make(map[int64]bool, len(c.Movements))
	for _, id := range c.Movements {
		movements[id] = true
	}
	orders := make(map[int64]bool, len(c.Orders))
	for _, id := range c.Orders {
		orders[id] = true
		r.LastOrder = max(r.LastOrder, id)
		if !movements[id] {
			r.OrdersWithoutStock++
		}
	}
	for _, id := range c.Movements {
		if !orders[id] {
			r.MovementsWithoutOrder++
		}
	}
	// lastStart is when the last surviving order began: whatever was acknowledged before has to be there.
	var lastStart, firstLost time.Time
	var lost []Ack
	for _, a := range acks {
		if orders[a.ID] {
			if a.Start.After(lastStart) {
				lastStart = a.Start
			}
			continue
		}
		lost = append(lost, a)
		r.Lost = append(r.Lost, a.ID)
		if firstLost.IsZero() || a.End.Before(firstLost) {
			firstLost = a.End
		}
	}
	r.LostOrders = len(lost)
	for _, a := range lost {
		if !a.End.After(lastStart) {
			r.OutOfOrder++
		}
	}
	if len(lost) > 0 {
		r.LostSpan = max(end.Sub(firstLost), 0)
	}
	return r
}

// Intact returns an error that says what no crash of correct storage can cause: damage within one database, or an
// order lost that a later surviving one depends on. Orders without stock are not among it, because they are what
// separate groups are expected to show.
func (r Result) Intact() error {
	var errs []error
	for _, d := range r.Damage {
		errs = append(errs, errors.New(d))
	}
	if r.OutOfOrder > 0 {
		errs = append(errs, fmt.Errorf("%s %s missing although later ones are there",
			words.Count(r.OutOfOrder, "acknowledged order"), words.Choose(r.OutOfOrder, "is", "are")))
	}
	return errors.Join(errs...)
}

// OneInstant returns an error unless the two databases are as they were at one single instant, with so many clients.
func (r Result) OneInstant(clients int) error {
	errs := []error{r.Intact()}
	if r.OrdersWithoutStock > 0 {
		errs = append(errs, fmt.Errorf("%s without stock movement", words.Count(r.OrdersWithoutStock, "order")))
	}
	if r.MovementsWithoutOrder > clients {
		errs = append(errs,
			fmt.Errorf("%s without order, more than the %d that can be under way",
				words.Count(r.MovementsWithoutOrder, "movement"), clients))
	}
	return errors.Join(errs...)
}

// SortAcks sorts by the time of acknowledgement.
func SortAcks(acks []Ack) {
	sort.Slice(acks, func(i, j int) bool { return acks[i].End.Before(acks[j].End) })
}
