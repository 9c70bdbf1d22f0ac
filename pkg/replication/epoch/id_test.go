package epoch

import (
	"strings"
	"testing"
	"time"
)

func TestDecodeMark(t *testing.T) {
	mark := Mark{Epoch: ID{7, 9}, Shard: 3, Config: Config{Version{2, 1}, []ShardID{1, 3}}, Boundary: 40}
	got, err := DecodeMark(mark.Encode())
	if err != nil || got.Epoch != mark.Epoch || got.Boundary != 40 || got.Shard != 3 || !got.Config.Has(1) {
		t.Errorf("%+v, %v", got, err)
	}
	for name, c := range map[string]struct {
		change func(*Mark)
		want   string
	}{
		"no number":      {func(m *Mark) { m.Epoch.Number = 0 }, "want a number"},
		"a large number": {func(m *Mark) { m.Epoch.Number = 1 << 60 }, "want a number"},
		"no run":         {func(m *Mark) { m.Epoch.Run = 0 }, "and a run"},
		"no shards":      {func(m *Mark) { m.Config.Shards = nil }, "no shard"},
		"not its shard":  {func(m *Mark) { m.Shard = 2 }, "shard 2 is not among its shards"},
		"shards twice":   {func(m *Mark) { m.Config.Shards = []ShardID{3, 3} }, "shard 3 behind shard 3"},
		"many shards":    {func(m *Mark) { m.Config.Shards = make([]ShardID, MaxShards+1) }, "the limit is 64"},
		"no version":     {func(m *Mark) { m.Config.Version = Version{} }, "no version"},
	} {
		m := mark
		c.change(&m)
		if _, err := DecodeMark(m.Encode()); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := DecodeMark([]byte("{")); err == nil {
		t.Error("no JSON is accepted")
	}
}

func TestParseID(t *testing.T) {
	for _, id := range []ID{{1, 1}, {1 << 48, 1<<64 - 1}, {7, 10}} {
		if got, err := ParseID(id.String()); err != nil || got != id {
			t.Errorf("%s: %+v, %v", id, got, err)
		}
	}
	for _, text := range []string{"", "none", "7", "7.", ".7", "0.7", "7.0", "-1.7", "7.g", "281474976710657.1", "7.1.1"} {
		if got, err := ParseID(text); err == nil {
			t.Errorf("%q: %+v", text, got)
		}
	}
}

func FuzzDecodeMark(f *testing.F) {
	f.Add(Mark{Epoch: ID{7, 9}, Shard: 3, Config: Config{Version{2, 1}, []ShardID{1, 3}}, Boundary: 40}.Encode())
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := DecodeMark(data)
		if err != nil {
			return
		}
		if again, err := DecodeMark(m.Encode()); err != nil || again.Epoch != m.Epoch || again.Boundary != m.Boundary {
			t.Errorf("%+v comes back as %+v, %v", m, again, err)
		}
	})
}

func TestConfigs(t *testing.T) {
	c := Found(4)
	if c.Validate() != nil || !c.Has(4) || c.Version.By != 4 {
		t.Errorf("founded: %+v", c)
	}
	if next := c.next(4, []ShardID{2, 9}, []ShardID{4}); next.Version.Compare(c.Version) <= 0 || next.Has(4) ||
		next.Validate() != nil || len(next.Shards) != 2 {
		t.Errorf("next: %+v", next)
	}
	d := Decision{Epoch: ID{1, 1}, Config: Config{Version{3, 1}, []ShardID{1, 2, 3}}, Without: []ShardID{1}}
	if p := d.Promoted(); p.Version != (Version{promotedVersions, 2}) || p.Has(1) || !p.Has(3) || d.Has(1) || !d.Has(2) {
		t.Errorf("promoted: %+v", p)
	}
	// The shard that coordinates goes on at the old site, and takes in others.
	old := d.Config
	for s := range ShardID(100) {
		old = old.next(1, []ShardID{4 + s}, nil)
	}
	again := Decision{Epoch: ID{9, 1}, Config: d.Promoted().next(2, []ShardID{9}, nil)}.Promoted()
	if p := d.Promoted().Version; p.Compare(old.Version) <= 0 || again.Version.Compare(p) <= 0 {
		t.Errorf("version %s of a promotion, %s of the old primary, %s of the next promotion", p, old.Version, again.Version)
	}
}

func TestTiming(t *testing.T) {
	d := DefaultTiming()
	if err := d.Validate(); err != nil {
		t.Error(err)
	}
	if d.pause(0) != d.Interval || d.pause(2) != 4*d.Interval || d.pause(100) != d.MaxPause {
		t.Errorf("pauses: %s, %s, %s", d.pause(0), d.pause(2), d.pause(100))
	}
	if d.retry(1) != 2*retryInterval || d.retry(2) != 4*retryInterval || d.retry(100) != d.MaxPause {
		t.Errorf("retries: %s, %s, %s", d.retry(1), d.retry(2), d.retry(100))
	}
	slow := d
	slow.Interval, slow.MaxPause = time.Minute, time.Minute
	if slow.retry(1) != 2*retryInterval || slow.retry(100) != time.Minute || slow.pause(0) != time.Minute {
		t.Errorf("with a long interval: %s, %s, %s", slow.retry(1), slow.retry(100), slow.pause(0))
	}
	d.Hold = time.Second
	if d.Validate() == nil {
		t.Error("a hold longer than the interval is accepted")
	}
}
