package replication

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/changemap"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// modelView is a view that the model has: each volume as the naive prefix, with what was written to the view.
type modelView struct {
	name     string
	writable bool
	content  map[string][]byte
}

// viewMachine is a group whose views are compared with the log of what was asked of it.
type viewMachine struct {
	cutMachine
	views  []*modelView
	opened int
}

// openSlowly opens the site so that apply moves when the test says so.
func (m *viewMachine) openSlowly() {
	var err error
	m.pool, err = blockdev.OpenPool(m.fs, "/pool", blockdev.WhoReplicator)
	m.check(err)
	m.site, err = Open(Config{FS: m.fs, Pool: m.pool, Site: "site-a", CommitInterval: 5 * time.Millisecond,
		ApplyInterval: time.Minute})
	m.check(err)
	if m.g, err = m.site.Group("shop"); err != nil && !errors.Is(err, ErrNotFound) {
		m.check(err)
	}
}

func (m *viewMachine) restart(power bool) {
	if power {
		for _, v := range m.views {
			for _, device := range m.view(v).Volumes() {
				m.check(device.Flush())
			}
		}
		m.check(m.g.Volumes()[0].Flush())
		clone := m.fs.CrashClone(vfs.CrashConfig{UnsyncedPercent: m.rng.IntN(101), RNG: m.rng})
		m.kill()
		m.fs = clone
	} else {
		m.kill()
	}
	m.openSlowly()
}

func (m *viewMachine) view(v *modelView) *View {
	got, err := m.g.View(v.name)
	m.check(err)
	return got
}

func (m *viewMachine) openView() {
	if len(m.views) == MaxViews {
		return
	}
	m.check(m.g.log.commit())
	points, err := m.g.Points()
	m.check(err)
	oldest, newest := points.Oldest.Ordinal, points.Newest.Ordinal
	if head := m.g.journal.Head(); newest != head || oldest > newest {
		m.t.Fatalf("recovery points %d to %d of a group at %d", oldest, newest, head)
	}
	v := &modelView{name: fmt.Sprintf("view-%d", m.opened+1), writable: m.rng.IntN(3) > 0, content: map[string][]byte{}}
	n := max(oldest+m.rng.Uint64N(newest-oldest+1), m.l.base)
	m.opened++
	_, err = m.g.CreateView(context.Background(), ViewSpec{Name: v.name, Writable: v.writable, LimitBytes: 1 << 30,
		Point: Point{Ordinal: n}})
	if errors.Is(err, core.ErrPrecondition) && m.g.checkpoint.read().AppliedOrdinal > n {
		return // a full journal was applied meanwhile
	}
	m.check(err)
	for id := range m.l.size {
		v.content[id] = m.l.at(id, n)
	}
	m.views = append(m.views, v)
}

// apply brings the images a part of the way.
func (m *viewMachine) apply() {
	m.check(m.g.log.commit())
	applied, head := m.g.checkpoint.read().AppliedOrdinal, m.g.journal.Head()
	pos, ok, err := m.g.journal.PositionOf(applied + m.rng.Uint64N(head-applied+1))
	m.check(err)
	if !ok {
		m.t.Fatal("an ordinal that is not applied has left the journal")
	}
	m.g.applier.mu.Lock()
	defer m.g.applier.mu.Unlock()
	m.check(m.g.applier.applyTo(context.Background(), pos))
	m.g.trimmer.work.send()
}

// write changes a view and the model of it.
func (m *viewMachine) write(v *modelView) {
	device := m.view(v).Volumes()[m.rng.IntN(len(v.content))]
	want := v.content[device.VolumeID]
	off := m.rng.Int64N(device.Size()/512) * 512
	n := min(device.Size()-off, (1+m.rng.Int64N(400))*512)
	fill := byte(m.rng.IntN(256))
	if !v.writable {
		if _, err := device.WriteAt(block(fill, int(n)), off); !errors.Is(err, ErrReadOnly) {
			m.t.Fatalf("a write to a view that is read-only: %v", err)
		}
		return
	}
	if fill < 80 {
		fill = 0
		m.check(device.Discard(off, n))
	} else {
		_, err := device.WriteAt(block(fill, int(n)), off)
		m.check(err)
	}
	copy(want[off:], block(fill, int(n)))
}

// read compares a part of a view.
func (m *viewMachine) read(v *modelView) {
	device := m.view(v).Volumes()[m.rng.IntN(len(v.content))]
	off := m.rng.Int64N(device.Size())
	m.compare(v, device, off, 1+m.rng.Int64N(device.Size()-off))
}

func (m *viewMachine) compare(v *modelView, device *ViewVolume, off, n int64) {
	got := make([]byte, n)
	_, err := device.ReadAt(got, off)
	m.check(err)
	want := v.content[device.VolumeID][off:][:n]
	if i := firstDifference(got, want); i >= 0 {
		at := off + int64(i)
		m.t.Fatalf("%s of volume %s, of ordinal %d, is not the volume at that ordinal with the view's writes: offset %d "+
			"(extent %d) is %#x instead of %#x", v.name, device.VolumeID, m.view(v).rec.Ordinal, at, at/changemap.ExtentBytes,
			got[i], want[i])
	}
}

func (m *viewMachine) judge() {
	for _, v := range m.views {
		for _, device := range m.view(v).Volumes() {
			m.compare(v, device, 0, device.Size())
		}
		st := m.view(v).Status()
		if st.Failed != nil {
			m.t.Fatalf("%s failed: %v", v.name, st.Failed)
		}
	}
	for _, v := range m.g.Volumes() { // a view's writes are seen by the view alone
		got := make([]byte, v.Size())
		_, err := v.ReadAt(got, 0)
		m.check(err)
		if i := firstDifference(got, m.l.at(v.id, m.g.journal.Head())); i >= 0 {
			m.t.Fatalf("volume %s itself differs at offset %d", v.id, i)
		}
	}
}

// A view shows the prefix of the group's writes up to its ordinal, with its own writes, while apply, writes, trims,
// kills and power losses go on. The model is naive: the list of writes, and the content at each prefix of it.
func TestViewModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		seed := rapid.Uint64().Draw(rt, "seed")
		m := &viewMachine{cutMachine: cutMachine{t: rt, rng: rand.New(rand.NewPCG(seed, 0)), fs: vfs.NewMem()}}
		m.openSlowly()
		defer func() { m.kill() }()
		var err error
		m.g, err = m.site.CreateGroup(GroupSpec{
			Name: "shop", Settings: core.Settings{JournalSizeBytes: MinJournalBytes},
		})
		m.check(err)
		for _, id := range []string{"v0", "v1"} {
			rec, err := m.pool.Create(blockdev.VolumeRecord{ID: id, Name: id, SizeBytes: 1<<20 + 4096, Replicable: true})
			m.check(err)
			m.check(m.g.AddVolume(rec, nil))
		}
		m.check(m.g.applier.apply(context.Background())) // there is no instant before the volumes are members
		m.l = newCutLog(m.g)
		for range rapid.IntRange(3, 40).Draw(rt, "steps") {
			var v *modelView
			if len(m.views) > 0 {
				v = m.views[m.rng.IntN(len(m.views))]
			}
			step := rapid.IntRange(0, 11).Draw(rt, "step")
			switch {
			case step < 3:
				for range 1 + m.rng.IntN(15) {
					m.check(m.l.do(m.rng, m.g, 128<<10))
				}
			case step == 3:
				m.openView()
			case step < 6:
				m.apply()
			case step == 10:
				m.restart(false)
			case step == 11:
				m.restart(true)
			case v == nil:
			case step == 6:
				m.read(v)
			case step < 9:
				m.write(v)
			case step == 9:
				m.removeView()
			}
		}
		m.judge()
	})
}

func (m *viewMachine) removeView() {
	i := m.rng.IntN(len(m.views))
	m.check(m.g.DeleteView(m.views[i].name))
	m.views = append(m.views[:i], m.views[i+1:]...)
}
