package core

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestExpiredTails(t *testing.T) {
	const hour = int64(time.Hour)
	now := 1000 * hour
	tail := func(id string, hours int64) KeptTail {
		return KeptTail{ID: id, UnixNanos: now - hours*hour, Complete: true}
	}
	list := []KeptTail{tail("new", 1), tail("mid", 5), tail("old", 50), tail("older", 60)}
	for _, c := range []struct {
		name  string
		most  uint32
		hours int64
		list  []KeptTail
		want  []string
	}{
		{"no limit", 0, 0, list, nil},
		{"number", 2, 0, list, []string{"older", "old"}},
		{"one", 1, 0, list, []string{"older", "old", "mid"}},
		{"more than there are", 9, 0, list, nil},
		{"age", 0, 20, list, []string{"older", "old"}},
		{"age of a tail to the nanosecond", 0, 50, list, []string{"older"}},
		{"both, the stricter counts", 3, 2, list, []string{"older", "old", "mid"}},
		{"both, number", 1, 100, list, []string{"older", "old", "mid"}},
		{"the newest stays, however old", 1, 1, []KeptTail{tail("older", 60), tail("old", 50)}, []string{"older"}},
		{"alone", 1, 1, []KeptTail{tail("old", 50)}, nil},
		{"an incomplete one neither counts nor is deleted", 1, 1,
			[]KeptTail{{ID: "partial", UnixNanos: now}, tail("old", 50)}, nil},
		{"one of unknown time neither counts nor is deleted", 1, 1,
			[]KeptTail{{ID: "unknown", Complete: true}, tail("old", 50)}, nil},
		{"a clock that was set back", 0, 1, []KeptTail{tail("future", -5), tail("older future", -4)}, nil},
		{"same time", 1, 0, []KeptTail{tail("b", 1), tail("a", 1), tail("c", 1)}, []string{"c", "b"}},
		{"none", 1, 1, nil, nil},
	} {
		s := &Settings{TailsMost: c.most, TailsMillis: c.hours * hour / 1e6}
		if got := s.ExpiredTails(c.list, now); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v instead of %v", c.name, got, c.want)
		}
		rand.Shuffle(len(c.list), func(i, j int) { c.list[i], c.list[j] = c.list[j], c.list[i] })
		if got := s.ExpiredTails(c.list, now); !slices.Equal(got, c.want) {
			t.Errorf("%s, in another order: %v instead of %v", c.name, got, c.want)
		}
	}
}
