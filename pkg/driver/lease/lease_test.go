package lease

import (
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/api/locatepb"
)

func TestNameLeases(t *testing.T) {
	now := time.Unix(0, 0)
	c := NewTable(func() time.Time { return now })
	name, group := Key{locatepb.Key_VOLUME_NAME, "v"}, Key{locatepb.Key_CONSISTENCY_GROUP, "g"}
	want := func(what string, err error, code codes.Code) {
		t.Helper()
		if status.Code(err) != code {
			t.Errorf("%s: error %v, want %s", what, err, code)
		}
	}
	want("first", c.Take("one", []Key{name}), codes.OK)
	want("the same again", c.Take("one", []Key{name}), codes.OK)
	want("another holder", c.Take("two", []Key{group, name}), codes.Aborted)
	want("what the refused one asked for is free", c.Take("three", []Key{group}), codes.OK)
	_, err := c.Use("two", []Key{name})
	want("creation under no lease", err, codes.Aborted)
	_, err = c.Use("one", []Key{name, group})
	want("creation of more than was leased", err, codes.Aborted)

	// A creation keeps the lease in force past its time and its release.
	done, err := c.Use("one", []Key{name})
	want("creation", err, codes.OK)
	now = now.Add(2 * Life)
	c.GiveUp("one")
	want("while it is at work", c.Take("two", []Key{name}), codes.Aborted)
	done()
	want("when it has ended", c.Take("two", []Key{name}), codes.OK)
	_, err = c.Use("one", []Key{name})
	want("creation under a lease that ended", err, codes.Aborted)

	now = now.Add(Life)
	_, err = c.Use("two", []Key{name})
	want("creation under a lease that has run out", err, codes.Aborted)
	want("take after", c.Take("one", []Key{name}), codes.OK)
	c.GiveUp("one")
	c.GiveUp("one")
	want("take after release", c.Take("two", []Key{name}), codes.OK)
	now = now.Add(Life)
	c.GiveUp("")
	if len(c.byKey) != 0 || len(c.byToken) != 0 {
		t.Errorf("left behind: %v %v", c.byKey, c.byToken)
	}
}
