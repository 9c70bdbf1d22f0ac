package shards

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
)

// TestEpochIntervalChanges: the time between epochs is changed at one shard of a group that runs, at all of them.
func TestEpochIntervalChanges(t *testing.T) {
	c := newCluster(t, 2)
	c.create(func(s *core.Settings) { s.Shard.EpochMillis = core.MaxEpochMillis })
	first := c.waitShown("b")
	changed, err := c.sites["a"][1].node.SetEpochInterval(t.Context(), "shop", 100)
	if err != nil || !changed {
		t.Fatalf("changed %v, %v", changed, err)
	}
	c.eventually("epochs follow each other", func() bool { return c.waitShown("b").Number > first.Number+5 })
	for _, m := range c.sites["a"] {
		if id, _ := m.group().Shard().Identity(); id.EpochMillis != 100 {
			t.Errorf("node %s has %d ms", m.Address(), id.EpochMillis)
		}
	}
	if changed, err := c.sites["a"][0].node.SetEpochInterval(t.Context(), "shop", 100); err != nil || changed {
		t.Errorf("again: changed %v, %v", changed, err)
	}
	if _, err := c.sites["a"][0].node.SetEpochInterval(t.Context(), "shop", 1); !errors.Is(err, core.ErrPrecondition) {
		t.Errorf("1 ms: %v", err)
	}
}

// TestVerifyOfShards compares all shards with their copies while writers cause each other across nodes. A damaged
// copy is found, and the copies still show epochs.
func TestVerifyOfShards(t *testing.T) {
	c := newCluster(t, 2)
	c.create(nil)
	c.waitShown("b")
	w := &chain{c: c, site: "a"}
	stop, stopped := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				stopped <- nil
				return
			default:
			}
			if err := w.write(); err != nil {
				stopped <- err
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	began := time.Now()
	verify := func(want ...uint64) {
		t.Helper()
		if _, err := c.sites["a"][1].node.Verify(t.Context(), "shop"); err != nil {
			t.Fatal(err)
		}
		if _, err := c.sites["a"][0].node.Verify(t.Context(), "shop"); err != nil {
			t.Fatalf("while one may run: %v", err)
		}
		for i, m := range c.sites["a"] {
			var v replication.VerifyStatus
			c.eventually("the comparison of "+m.groupName()+" has ended", func() bool {
				v = m.group().Status().Verify
				if v.Error != "" {
					t.Fatalf("%s: %s", m.groupName(), v.Error)
				}
				return !v.Running && v.FinishedUnixNanos != nil && *v.FinishedUnixNanos > began.UnixNano()
			})
			if v.DifferenceCount == nil || *v.DifferenceCount != want[i] {
				t.Errorf("%s: %+v, want %d differences", m.groupName(), v, want[i])
			}
		}
	}
	verify(0, 0)
	close(stop)
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
	damaged := c.sites["b"][1]
	path, err := damaged.pool.ImagePath("v1")
	if err != nil {
		t.Fatal(err)
	}
	f, err := damaged.fs.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(bytes.Repeat([]byte{1}, blockBytes), volumeBytes-blockBytes); err != nil {
		t.Fatal(err)
	}
	f.Close()
	began = time.Now()
	verify(0, 1)
	w.writes(20)
	before := c.waitShown("b")
	c.eventually("the copies show further epochs", func() bool { return before.Before(c.waitShown("b")) })
	for _, m := range c.sites["a"] {
		m.kill()
	}
	c.promote("b", 0, true)
}
