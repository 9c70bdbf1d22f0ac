package replication

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
)

// A peer asks a copy to take over again and again, while the copy waits for the other shards. The copy is at one of the
// requests at a time. Behind the first one the last one counts, and its refusal goes to the stream that it came on
// last.
func TestOneTakeOverAtATime(t *testing.T) {
	s := newTestSite(t, link.NewNetwork(nil), "site-b", nil)
	hello := goodHello()
	hello.Shard = &linkpb.Shard{Group: "orders"}
	g, err := s.site.groupForHello("site-a", hello)
	if err != nil {
		t.Fatal(err)
	}
	started, refusals := make(chan string), make(chan error)
	s.site.TakesOver(func(ctx context.Context, group string) error {
		select {
		case started <- group:
		case <-ctx.Done():
			return ctx.Err()
		}
		select {
		case err := <-refusals:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	old, now := &receiver{g: g, ackWork: newSignal()}, &receiver{g: g, ackWork: newSignal()}
	ask := func(r *receiver, id uint64) {
		t.Helper()
		if err := r.roleRequest(&linkpb.RoleRequest{Id: id, Kind: linkpb.RoleRequest_KIND_TAKE_OVER}); err != nil {
			t.Fatal(err)
		}
	}
	const last = 100
	ask(old, 1)
	if group := <-started; group != "orders" {
		t.Fatalf("group %q is to be taken over", group)
	}
	for id := uint64(2); id <= last; id++ {
		ask(old, id)
	}
	refusals <- errors.New("a shard is missing")
	<-started
	ask(now, last)
	refusals <- errors.New("a shard is still missing")
	eventually(t, "the request is refused", func() bool { return now.answers.Load() != nil })
	if a := now.answers.Load(); a.GetId() != last || !strings.Contains(a.GetMessage(), "still missing") {
		t.Errorf("answer %v", a)
	}
	if a := old.answers.Load(); a != nil {
		t.Errorf("the stream before has the answer %v", a)
	}
	select {
	case <-started:
		t.Error("a request that was given up is carried out")
	default:
	}
	ask(now, last+1)
	<-started
}
