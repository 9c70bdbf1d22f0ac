package blockdev

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/slipstream-storage/slipstream/pkg/recordfile"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

func snapshot(id string) SnapshotRecord {
	return SnapshotRecord{ID: id, Name: "snapshot-" + id, SourceVolumeID: "v", SizeBytes: 64 << 10, BlockSizeBytes: 4096}
}

func TestSnapshotRecords(t *testing.T) {
	fsys := vfs.NewMem()
	p := openPool(t, fsys, "/pool", WhoDriver)
	a, err := p.CreateSnapshot(snapshot("a"))
	noErr(t, err)
	if a.State != SnapshotCreating || a.CreatedUnixNanos == 0 {
		t.Errorf("defaults: %+v", a)
	}
	_, err = p.CreateSnapshot(snapshot("a"))
	if !errors.Is(err, ErrSnapshotExists) || !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second a: %v", err)
	}
	path, err := p.SnapshotImagePath("a")
	noErr(t, err)
	img, err := CreateImage(fsys, path, 64<<10, false)
	noErr(t, err)
	noErr(t, img.Close())
	updated, err := p.UpdateSnapshot("a", func(r *SnapshotRecord) error {
		r.State, r.Method, r.ParentID = SnapshotReady, MethodCopy, "b"
		r.Cut = SnapshotCut{GroupID: "g", Group: "shop", Timeline: "t", Ordinal: 7, UnixNanos: 8}
		return nil
	})
	noErr(t, err)
	read, err := p.GetSnapshot("a")
	noErr(t, err)
	if d := cmp.Diff(updated, read); d != "" || read.Cut.Ordinal != 7 {
		t.Errorf("(-updated +read):\n%s", d)
	}
	if img, err = OpenImage(fsys, path, ExpectSize(read.SizeBytes)); err != nil || img.Size() != 64<<10 {
		t.Fatalf("image: %v", err)
	}
	noErr(t, img.Close())

	stop := errors.New("stop")
	for what, change := range map[string]func(*SnapshotRecord) error{
		"an error":       func(*SnapshotRecord) error { return stop },
		"another id":     func(r *SnapshotRecord) error { r.ID = "c"; return nil },
		"another volume": func(r *SnapshotRecord) error { r.SourceVolumeID = "w"; return nil },
		"no size":        func(r *SnapshotRecord) error { r.SizeBytes = 0; return nil },
		"no state":       func(r *SnapshotRecord) error { r.State = "odd"; return nil },
		"own parent":     func(r *SnapshotRecord) error { r.ParentID = "a"; return nil },
	} {
		if _, err := p.UpdateSnapshot("a", change); err == nil {
			t.Errorf("%s: no error", what)
		}
		if again, err := p.GetSnapshot("a"); err != nil || cmp.Diff(read, again) != "" {
			t.Errorf("%s: changed to %+v, %v", what, again, err)
		}
	}
	bad := snapshot("../x")
	if _, err := p.CreateSnapshot(bad); err == nil {
		t.Error("an id that is a path")
	}
	_, err = p.CreateSnapshot(snapshot("b"))
	noErr(t, err)
	if list, err := p.ListSnapshots(); err != nil || len(list) != 2 || list[0].ID != "a" || list[1].ID != "b" {
		t.Errorf("%v, %v", list, err)
	}
	// A damaged record is named, and the others can be read.
	noErr(t, vfs.WriteFileAtomic(fsys, "/pool/snapshots/b/snapshot.json", []byte("{}")))
	var corrupt *recordfile.CorruptError
	if list, err := p.ListSnapshots(); !errors.As(err, &corrupt) || len(list) != 1 {
		t.Errorf("%v, %v", list, err)
	}
	for range 2 {
		noErr(t, p.DeleteSnapshot("b"))
	}
	if _, err := p.GetSnapshot("b"); !errors.Is(err, ErrNoSnapshot) || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a deleted one: %v", err)
	}
}

// A power loss before any operation leaves a snapshot that is being created or deleted whole or not at all, and
// nothing that Sweep does not remove.
func TestSnapshotCrash(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	m := vfs.NewMem()
	armed, crashes := false, 0
	var want []SnapshotState // that a snapshot may have; "" for none
	p := openPool(t, vfs.NewErrFS(m, func(vfs.Op, string) error {
		if !armed {
			return nil
		}
		crashes++
		c := m.CrashClone(vfs.CrashConfig{UnsyncedPercent: rng.IntN(101), RNG: rng})
		q, err := OpenPool(c, "/pool", WhoDriver)
		noErr(t, err)
		defer q.Close()
		_, err = q.Sweep()
		noErr(t, err)
		var got SnapshotState
		rec, err := q.GetSnapshot("a")
		if err == nil {
			got = rec.State
		} else if !errors.Is(err, ErrNoSnapshot) {
			t.Fatal(err)
		}
		names, err := c.ReadDir("/pool/snapshots")
		noErr(t, err)
		known := false
		for _, w := range want {
			known = known || w == got
		}
		if !known || len(names) > 1 || (len(names) == 1) != (got != "") {
			t.Errorf("the snapshot is %q, want one of %q; the directory holds %q", got, want, names)
		}
		return nil
	}), "/pool", WhoDriver)
	armed = true
	for range 3 {
		want = []SnapshotState{"", SnapshotCreating}
		_, err := p.CreateSnapshot(snapshot("a"))
		noErr(t, err)
		want = []SnapshotState{SnapshotCreating, SnapshotReady}
		_, err = p.UpdateSnapshot("a", func(r *SnapshotRecord) error { r.State = SnapshotReady; return nil })
		noErr(t, err)
		want = []SnapshotState{SnapshotReady, ""}
		noErr(t, p.DeleteSnapshot("a"))
	}
	if crashes < 30 {
		t.Errorf("only %d power losses", crashes)
	}
}
