package replication

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/changes"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// modelSnapshot is a snapshot that the model has.
type modelSnapshot struct {
	target CutTarget
	cut    blockdev.SnapshotCut
}

// cutMachine is a group whose snapshots are compared with the log of what was asked of it.
type cutMachine struct {
	t     *rapid.T
	rng   *rand.Rand
	fs    *vfs.MemFS
	site  *Site
	pool  *blockdev.Pool
	g     *Group
	l     *cutLog
	taken int
	// alive are those that were not deleted, oldest first.
	alive []modelSnapshot
}

func (m *cutMachine) check(err error) {
	if err != nil {
		m.t.Helper()
		m.t.Fatal(err)
	}
}

func (m *cutMachine) open() {
	var err error
	m.site, m.pool, err = openSite(m.fs)
	m.check(err)
	m.g, err = m.site.Group("shop")
	m.check(err)
}

func (m *cutMachine) kill() { m.site.Kill(); m.pool.Close() }

// power ends the site as a power loss does, everything flushed.
func (m *cutMachine) power() {
	m.check(m.g.Volumes()[0].Flush())
	clone := m.fs.CrashClone(vfs.CrashConfig{UnsyncedPercent: m.rng.IntN(101), RNG: m.rng})
	m.kill()
	m.fs = clone
	m.open()
}

func (m *cutMachine) cut(volumes []string) {
	m.taken++
	var targets []CutTarget
	for _, id := range volumes {
		rec, err := m.pool.CreateSnapshot(blockdev.SnapshotRecord{
			ID: fmt.Sprintf("snap-%d-%s", m.taken, id), Name: fmt.Sprintf("%d-%s", m.taken,
				id), SourceVolumeID: id, SizeBytes: m.l.size[id],
			BlockSizeBytes: 512, State: blockdev.SnapshotCreating,
		})
		m.check(err)
		targets = append(targets, CutTarget{VolumeID: id, SnapshotID: rec.ID})
	}
	head := m.g.journal.Head()
	cut, err := m.g.Cut(context.Background(), targets)
	m.check(err)
	if cut.Ordinal != head {
		m.t.Fatalf("cut at ordinal %d of a group at %d", cut.Ordinal, head)
	}
	for _, target := range targets {
		m.alive = append(m.alive, modelSnapshot{target, cut})
	}
}

// remove deletes a snapshot as the driver does, repeating itself now and then.
func (m *cutMachine) remove(i int) {
	id := m.alive[i].target.SnapshotID
	m.alive = slices.Delete(m.alive, i, i+1)
	for range 1 + m.rng.IntN(2) {
		m.check(m.g.ReleaseCut(id))
		m.check(changes.Unlink(m.fs, m.pool, id))
		if m.rng.IntN(3) == 0 {
			m.power()
		}
	}
	m.check(m.pool.DeleteSnapshot(id))
}

// judge demands that every snapshot is its volume at its ordinal, that any two of a volume are connected, and that the
// changes between them have all that differs. A snapshot whose copy was not ended is ready.
func (m *cutMachine) judge() {
	last := map[string]string{}
	for _, s := range m.alive {
		m.check(checkCut(m.fs, m.pool, m.l, s.cut, []CutTarget{s.target}))
		if before := last[s.target.VolumeID]; before != "" {
			_, _, err := checkChanges(m.fs, m.pool, before, s.target.SnapshotID)
			m.check(err)
		}
		last[s.target.VolumeID] = s.target.SnapshotID
	}
}

// Cuts, deletions in any order, kills and power losses between writes.
func TestCutModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		seed := rapid.Uint64().Draw(rt, "seed")
		m := &cutMachine{t: rt, rng: rand.New(rand.NewPCG(seed, 0)), fs: vfs.NewMem()}
		m.fs.SetReflink(rapid.Bool().Draw(rt, "reflink"))
		var err error
		m.site, m.pool, err = openSite(m.fs)
		m.check(err)
		defer func() { m.kill() }()
		m.g, err = m.site.CreateGroup(GroupSpec{
			Name: "shop", Settings: core.Settings{JournalSizeBytes: MinJournalBytes},
		})
		m.check(err)
		volumes := []string{"v0", "v1"}
		for _, id := range volumes {
			rec, err := m.pool.Create(blockdev.VolumeRecord{ID: id, Name: id, SizeBytes: 1<<20 + 4096, Replicable: true})
			m.check(err)
			m.check(m.g.AddVolume(rec, nil))
		}
		m.l = newCutLog(m.g)
		for range rapid.IntRange(3, 25).Draw(rt, "steps") {
			switch rapid.IntRange(0, 9).Draw(rt, "step") {
			case 0, 1, 2, 3:
				for range 1 + m.rng.IntN(15) {
					m.check(m.l.do(m.rng, m.g, 128<<10))
				}
			case 4:
				m.cut(volumes)
			case 5:
				m.cut([]string{volumes[m.rng.IntN(2)]})
			case 6:
				if len(m.alive) > 0 {
					m.remove(m.rng.IntN(len(m.alive)))
				}
			case 7:
				m.kill()
				m.open()
			case 8:
				m.power()
			case 9:
				time.Sleep(time.Duration(m.rng.IntN(4)) * time.Millisecond) // lets apply and the copier get somewhere
			}
		}
		m.judge()
	})
}

// A volume that left the group and comes back has written what the group did not see: its next snapshot has no parent.
func TestChangesOfAVolumeThatWasAway(t *testing.T) {
	fs := vfs.NewMem()
	site, pool, err := openSite(fs)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	defer site.Kill()
	s := &testSite{t: t, name: "site-a", fs: fs, pool: pool, site: site}
	g := s.createGroup("shop", "", 2, 1<<20, nil)
	first := createSnapshots(t, pool, "1", "v0", "v1")
	mustCut(t, g, first)
	if err := waitReady(pool, first); err != nil {
		t.Fatal(err)
	}
	// The copy is ready a moment before the group has forgotten it.
	eventually(t, "the volume leaves", func() bool { err := g.RemoveVolume("v0", nil); return !errors.Is(err, ErrInUse) })
	image, err := pool.OpenImage("v0")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := image.WriteAt(block(9, 4096), 0); err != nil {
		t.Fatal(err)
	}
	image.Close()
	rec, err := pool.Get("v0")
	if err != nil {
		t.Fatal(err)
	}
	if err := g.AddVolume(rec, nil); err != nil {
		t.Fatal(err)
	}
	second := createSnapshots(t, pool, "2", "v0", "v1")
	mustCut(t, g, second)
	_, err = changes.Between(fs, pool, first[0].SnapshotID, second[0].SnapshotID)
	if !errors.Is(err, changes.ErrUnrelated) {
		t.Fatalf("a volume that was away: %v", err)
	}
	if _, err := changes.Between(fs, pool, first[1].SnapshotID, second[1].SnapshotID); err != nil {
		t.Fatalf("one that was not: %v", err)
	}
}
