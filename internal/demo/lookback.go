package demo

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/internal/pause"
	"github.com/slipstream-storage/slipstream/internal/testsite"
	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/internal/workload"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

// A look back is a view of the shop at site B as it was before the disaster. The view is opened while the copy still
// has its history: a promoted group applies its journal and has earlier points no more. The view stays what it is, and
// is looked into while the shop runs on at site B.

const (
	lookBack = 10 * time.Second
	// historyKept is more than that: the view is opened some time after the disaster.
	historyKept  = 2 * lookBack
	lookBackView = "before"
)

// Earlier is the shop as it was some time before the disaster.
type Earlier struct {
	At time.Time
	// Opened is the time from the call until the view could be used.
	Opened time.Duration
	// Result is compared with the orders that were acknowledged at that time.
	Result workload.Result
	// Later are orders that are there although they began after that time.
	Later int
}

// openEarlier opens the view at site B. There is none if the history does not reach so far back.
func (d *demo) openEarlier(ctx context.Context, pair *testsite.Pair, v *Variant) error {
	at, begin := v.Killed.Add(-lookBack), time.Now()
	_, err := pair.B.Sidecar.CreateView(ctx, &sidecarpb.CreateViewRequest{Group: jointGroup, Name: lookBackView,
		Writable: true, Point: &sidecarpb.CreateViewRequest_AtUnixNanos{AtUnixNanos: at.UnixNano()}})
	switch {
	case status.Code(err) == codes.FailedPrecondition:
		d.say("site B has no view of the shop %v before the disaster: %v", lookBack, err)
		return nil
	case err != nil:
		return fmt.Errorf("opening a view of the shop as it was %v before the disaster: %w", lookBack, err)
	}
	v.Earlier = &Earlier{At: at, Opened: time.Since(begin)}
	d.say("site B: a view of the shop as it was %v before the disaster, opened in %s", lookBack,
		milliseconds(v.Earlier.Opened))
	return nil
}

// lookAtEarlier checks the databases in the view, and takes it away.
func (d *demo) lookAtEarlier(ctx context.Context, s *testsite.Site, sh *shop, v *Variant) error {
	e := v.Earlier
	ctx, cancel := context.WithTimeout(ctx, wayTimeout)
	defer cancel()
	handles, err := viewHandles(ctx, s)
	if err != nil {
		return err
	}
	opened, err := openParts(ctx, s, sh, lookBackView, handles)
	if err != nil {
		return err
	}
	var before []workload.Ack
	began := map[int64]time.Time{}
	for _, a := range sh.acks {
		began[a.ID] = a.Start
		if !a.End.After(e.At) {
			before = append(before, a)
		}
	}
	if e.Result, err = workload.Check(ctx, d.Kind, opened.dirs, before, e.At); err != nil {
		return err
	}
	for _, id := range e.Result.IDs {
		if began[id].After(e.At) {
			e.Later++
		}
	}
	d.say("%v before the disaster: %s, %d without stock; at the disaster: %s", lookBack,
		words.Count(e.Result.Orders, "order"), e.Result.OrdersWithoutStock, words.Count(v.Result.Orders, "order"))
	for _, volume := range []*testsite.Volume{opened.stock, opened.sales} {
		err := whileHeld(ctx, func() error {
			if err := s.Unmount(ctx, volume); err != nil {
				return err
			}
			return s.DeleteVolume(ctx, volume)
		})
		if err != nil {
			return err
		}
	}
	return whileHeld(ctx, func() error {
		_, err := s.Sidecar.DeleteView(ctx, &sidecarpb.DeleteViewRequest{Group: jointGroup, Name: lookBackView})
		return err
	})
}

// heldTimeout bounds whileHeld.
const heldTimeout = time.Minute

// whileHeld makes a call again as long as it says that a volume is in use: containers of the machine that start
// meanwhile hold a copy of its mount for a moment. A view is Unavailable then, and a group that moves is refused.
func whileHeld(ctx context.Context, call func() error) error {
	ctx, cancel := context.WithTimeout(ctx, heldTimeout)
	defer cancel()
	for {
		err := call()
		if code := status.Code(err); code != codes.Unavailable && code != codes.FailedPrecondition {
			return err
		}
		if !pause.For(ctx, 100*time.Millisecond) {
			return err
		}
	}
}

// viewHandles are what volumes are made from to mount the view, by the volumes that it shows.
func viewHandles(ctx context.Context, s *testsite.Site) (map[string]string, error) {
	views, err := s.Sidecar.ListViews(ctx, &sidecarpb.ListViewsRequest{Group: jointGroup})
	if err != nil {
		return nil, err
	}
	handles := map[string]string{}
	for _, view := range views.GetViews() {
		if view.GetFailed() != "" {
			return nil, fmt.Errorf("view %s shows nothing any more: %s", view.GetName(), view.GetFailed())
		}
		for _, volume := range view.GetVolumes() {
			handles[volume.GetVolumeId()] = volume.GetCsiVolumeId()
		}
	}
	return handles, nil
}

// earlierErr is what must not be in the view.
func (r *Results) earlierErr() error {
	if r.Joint.Earlier == nil {
		return nil
	}
	e := r.Joint.Earlier
	var errs []error
	if err := e.Result.OneInstant(r.Clients); err != nil {
		errs = append(errs, fmt.Errorf("the view of the shop before the disaster is not of one instant: %w", err))
	}
	if e.Result.LostOrders > 0 {
		errs = append(errs, fmt.Errorf("the view lacks %s acknowledged before its point",
			words.Count(e.Result.LostOrders, "order")))
	}
	if e.Later > 0 {
		errs = append(errs, fmt.Errorf("the view has %s begun after its point", words.Count(e.Later, "order")))
	}
	return errors.Join(errs...)
}
