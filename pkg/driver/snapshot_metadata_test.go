package driver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"pgregory.net/rapid"

	"github.com/slipstream-storage/slipstream/internal/bug"
	"github.com/slipstream-storage/slipstream/internal/bug/inject"
	"github.com/slipstream-storage/slipstream/internal/testenv"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/host"
	"github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

const sector = 4096

// fataler is a *testing.T or a *rapid.T.
type fataler interface {
	Helper()
	Fatalf(format string, args ...any)
}

// backup is a client of the SnapshotMetadata service, as a backup program is one, beside a pool whose snapshots it
// reads.
type backup struct {
	t fataler
	d *Driver
	// contents are what the snapshots must hold, by id.
	contents map[string][]byte
	count    int
	// fine: every starting_offset is tried, not some.
	fine bool
}

func (b *backup) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatalf("%v", err)
	}
}

// answer is what a stream said.
type answer struct {
	grpc.ServerStream
	ctx      context.Context
	most     int32
	messages int
	capacity int64
	ranges   []*csi.BlockMetadata
	err      error
}

func (a *answer) Context() context.Context { return a.ctx }

func (a *answer) add(kind csi.BlockMetadataType, capacity int64, list []*csi.BlockMetadata) error {
	a.messages++
	if kind != csi.BlockMetadataType_VARIABLE_LENGTH || a.messages > 1 && capacity != a.capacity || a.most > 0 &&
		len(list) > int(a.most) {
		a.err = fmt.Errorf("message %d: %s, capacity %d after %d, %d ranges of at most %d", a.messages, kind, capacity,
			a.capacity, len(list), a.most)
	}
	a.capacity = capacity
	a.ranges = append(a.ranges, list...)
	return a.err
}

type allocatedStream struct{ *answer }

func (s allocatedStream) Send(r *csi.GetMetadataAllocatedResponse) error {
	return s.add(r.GetBlockMetadataType(), r.GetVolumeCapacityBytes(), r.GetBlockMetadata())
}

type deltaStream struct{ *answer }

func (s deltaStream) Send(r *csi.GetMetadataDeltaResponse) error {
	return s.add(r.GetBlockMetadataType(), r.GetVolumeCapacityBytes(), r.GetBlockMetadata())
}

// ask calls GetMetadataDelta, or without a base GetMetadataAllocated.
func (b *backup) ask(base, target string, from int64, most int32) (*answer, error) {
	s := &snapshotMetadataServer{d: b.d}
	a := &answer{ctx: context.Background(), most: most}
	if base == "" {
		return a, s.GetMetadataAllocated(&csi.GetMetadataAllocatedRequest{SnapshotId: target, StartingOffset: from,
			MaxResults: most}, allocatedStream{a})
	}
	return a, s.GetMetadataDelta(&csi.GetMetadataDeltaRequest{BaseSnapshotId: base, TargetSnapshotId: target,
		StartingOffset: from, MaxResults: most}, deltaStream{a})
}

// ranges is ask, with what the specification says of an answer checked.
func (b *backup) ranges(base, target string, from int64, most int32) []*csi.BlockMetadata {
	b.t.Helper()
	a, err := b.ask(base, target, from, most)
	b.must(err)
	size := int64(len(b.contents[target]))
	if a.messages == 0 || a.capacity != size {
		b.t.Fatalf("%s to %s: %d messages, capacity %d of %d", base, target, a.messages, a.capacity, size)
	}
	end := int64(0)
	for i, r := range a.ranges {
		if r.GetSizeBytes() <= 0 || r.GetByteOffset() < end || r.GetByteOffset()+r.GetSizeBytes() > size || i == 0 &&
			r.GetByteOffset()+r.GetSizeBytes() <= from {
			b.t.Fatalf("%s to %s from %d: range %d is %v, behind %d, of %d", base, target, from, i, r, end, size)
		}
		end = r.GetByteOffset() + r.GetSizeBytes()
	}
	return a.ranges
}

// apply copies ranges of a snapshot's image into a copy of its base.
func (b *backup) apply(to []byte, target string, ranges []*csi.BlockMetadata) {
	b.t.Helper()
	path, err := b.d.store.Pool.SnapshotImagePath(target)
	b.must(err)
	f, err := b.d.attachments.FS.OpenReadOnly(path)
	b.must(err)
	defer f.Close()
	for _, r := range ranges {
		if n, err := f.ReadAt(to[r.GetByteOffset():r.GetByteOffset()+r.GetSizeBytes()], r.GetByteOffset()); err != nil &&
			!(err == io.EOF && int64(n) == r.GetSizeBytes()) {
			b.t.Fatalf("read %v of snapshot %s: %v", r, target, err)
		}
	}
}

// rebuild makes a snapshot from its base and what the service names, in one stream and in every way it can be
// interrupted.
func (b *backup) rebuild(base, target string, most int32) (namedBytes int64) {
	b.t.Helper()
	want := b.contents[target]
	fresh := func() []byte {
		got := make([]byte, len(want))
		copy(got, b.contents[base]) // what the volume grew by is zeros
		return got
	}
	all := b.ranges(base, target, 0, most)
	got := fresh()
	b.apply(got, target, all)
	b.same(got, want, "from %q to %s", base, target)
	for _, r := range all {
		namedBytes += r.GetSizeBytes()
	}
	// A stream that broke behind the k-th range.
	for k := range all {
		if !b.fine && k%7 != 0 {
			continue
		}
		from := all[k].GetByteOffset() + all[k].GetSizeBytes()
		got := fresh()
		b.apply(got, target, all[:k+1])
		b.apply(got, target, b.ranges(base, target, from, most))
		b.same(got, want, "from %q to %s, resumed at %d", base, target, from)
	}
	// Any offset: everything behind it.
	step := int64(sector / 2)
	if !b.fine {
		step = max(step, int64(len(want))/8+1000)
	}
	for from := int64(0); from <= int64(len(want)); from += step {
		got := fresh()
		b.apply(got, target, b.ranges(base, target, from, most))
		b.same(got[from:], want[from:], "from %q to %s, behind %d", base, target, from)
	}
	return namedBytes
}

func (b *backup) same(got, want []byte, format string, args ...any) {
	b.t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	i := 0
	for got[i] == want[i] {
		i++
	}
	b.t.Fatalf("rebuilt %s: byte %d of %d differs: %d, want %d", fmt.Sprintf(format, args...), i, len(want), got[i],
		want[i])
}

// plainVolume is a volume without a group that a test writes to.
type plainVolume struct {
	b       *backup
	id      string
	content []byte
	taken   []string
}

func newPlainVolume(b *backup, id string, sizeBytes int64) *plainVolume {
	_, err := b.d.store.Pool.Create(blockdev.VolumeRecord{ID: id, Name: id, SizeBytes: sizeBytes})
	b.must(err)
	return &plainVolume{b: b, id: id, content: make([]byte, sizeBytes)}
}

func (v *plainVolume) change(off, n int64, fill byte) {
	image, err := v.b.d.store.Pool.OpenImage(v.id)
	v.b.must(err)
	p := bytes.Repeat([]byte{fill}, int(n))
	copy(v.content[off:], p)
	if fill == 0 {
		err = image.Discard(off, n)
	} else {
		_, err = image.WriteAt(p, off)
	}
	v.b.must(errors.Join(err, image.Close()))
}

func (v *plainVolume) grow(n int64) {
	v.content = append(v.content, make([]byte, n)...)
	_, err := v.b.d.store.Pool.Grow(v.id, int64(len(v.content)))
	v.b.must(err)
}

func (v *plainVolume) snapshot() { v.taken = append(v.taken, v.b.snapshot(v.id, v.content)) }

// snapshot has the driver take one of a volume that holds content, and waits until it is complete.
func (b *backup) snapshot(volumeID string, content []byte) (id string) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	b.count++
	created, err := (&controllerServer{d: b.d}).CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: fmt.Sprint(volumeID,
		"-", b.count), SourceVolumeId: volumeID})
	b.must(err)
	id = created.GetSnapshot().GetSnapshotId()
	b.must((&replication.Group{}).WaitFor(ctx, func() bool {
		rec, err := b.d.store.Pool.GetSnapshot(id)
		return err != nil || rec.State != blockdev.SnapshotCopying
	}))
	b.contents[id] = bytes.Clone(content)
	return id
}

// sequence writes, discards, grows and takes snapshots as drawn, and rebuilds every snapshot from every earlier one.
func sequence(rt *rapid.T, b *backup, id string) {
	v := newPlainVolume(b, id, rapid.Int64Range(1, 20).Draw(rt, "sectors")*sector)
	for range rapid.IntRange(2, 3).Draw(rt, "snapshots") {
		for range rapid.IntRange(0, 6).Draw(rt, "changes") {
			if rapid.IntRange(0, 9).Draw(rt, "grow") == 0 {
				v.grow(rapid.Int64Range(1, 10).Draw(rt, "by") * sector)
			}
			off := rapid.Int64Range(0, int64(len(v.content))/sector-1).Draw(rt, "at") * sector
			n := min(rapid.Int64Range(1, 9).Draw(rt, "length")*sector, int64(len(v.content))-off)
			v.change(off, n, byte(max(0, rapid.IntRange(-80, 255).Draw(rt, "fill"))))
		}
		v.snapshot()
	}
	most := rapid.Int32Range(0, 3).Draw(rt, "max_results")
	for j, target := range v.taken {
		b.rebuild("", target, most)
		for _, base := range v.taken[:j] {
			b.rebuild(base, target, most)
		}
	}
}

// metadataDriver is a driver over a pool and nothing else of a machine, beside a replicator if there is one.
func metadataDriver(t fataler, fsys vfs.FS, dir, sidecarEndpoint string) *Driver {
	m := newMachine()
	d, err := newDriver(Options{NodeID: "node-a", PoolDir: dir, SidecarEndpoint: sidecarEndpoint},
		host.System{FS: fsys, Mounter: fakeMounter{m}, Filesystems: fakeFileSystems{m},
			Loops: fakeLoops{m}, Writeback: fakeWriteback{m}})
	if err != nil {
		t.Fatalf("%v", err)
	}
	return d
}

func TestMetadataRebuilds(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		mem := vfs.NewMem()
		mem.SetReflink(rapid.Bool().Draw(rt, "reflink"))
		b := &backup{t: rt, d: metadataDriver(rt, mem, "/slipstream-test-pool", ""), contents: map[string][]byte{},
			fine: true}
		defer b.d.Close()
		sequence(rt, b, "vol-1")
	})
}

// TestMetadataRebuildsOnRealPools: on XFS snapshots share blocks, and what they share is not named; ext4 copies them.
func TestMetadataRebuildsOnRealPools(t *testing.T) {
	for name, mkfs := range map[string][]string{"xfs": {"mkfs.xfs", "-q", "-m", "reflink=1"},
		"ext4": {"mkfs.ext4", "-q"}} {
		t.Run(name, func(t *testing.T) {
			d := metadataDriver(t, vfs.OS, testenv.MountFS(t, mkfs...)+"/pool", "")
			defer d.Close()
			count := 0
			rapid.Check(t, func(rt *rapid.T) {
				if count++; count > 30 {
					return // each costs a dozen syncs; what is drawn is the same as in memory
				}
				sequence(rt, &backup{t: rt, d: d, contents: map[string][]byte{}}, fmt.Sprintf("vol-%s-%d", name, count))
			})

			b := &backup{t: t, d: d, contents: map[string][]byte{}}
			v := newPlainVolume(b, "vol-large", 32*mib)
			v.change(0, 16*mib, 'a')
			v.snapshot()
			v.snapshot() // so that what is overwritten later has two owners too
			v.change(5*mib, 2*sector, 'b')
			v.change(9*mib, 64*sector, 0)
			v.snapshot()
			v.change(20*mib, sector, 'c')
			v.snapshot()
			named := b.rebuild(v.taken[1], v.taken[3], 0)
			changed, all := int64(2+64+1)*sector, 16*mib+sector
			t.Logf("%d bytes changed, %d named, %d allocated", changed, named, all)
			// XFS reserves up to 128 KiB around a write to shared space.
			if name == "xfs" && named > changed+2*128<<10 || named < changed || named > all+128<<10 {
				t.Errorf("%d bytes changed and %d are named", changed, named)
			}
		})
	}
}

// TestMetadataOfGroup rebuilds snapshots that a real group took at ordinals, with deletions in between, from its change
// sets.
func TestMetadataOfGroup(t *testing.T) {
	net := link.NewNetwork(nil)
	t.Cleanup(net.Close)
	mem := vfs.NewMem()
	mem.SetReflink(true)
	r := startReplicator(t, net, "east", mem, "/slipstream-test-pool", func(vfs.Op, string) error { return nil })
	d := metadataDriver(t, mem, "/slipstream-test-pool", r.endpoint)
	t.Cleanup(func() { d.Close() })
	b := &backup{t: t, d: d, contents: map[string][]byte{}}
	const size = 4 * mib
	rec, err := d.store.Pool.Create(blockdev.VolumeRecord{ID: "vol-1", Name: "v", SizeBytes: size, Replicable: true,
		Order: blockdev.OrderFlush})
	b.must(err)
	g, err := r.site.CreateGroup(replication.GroupSpec{
		Name: "shop", Settings: core.Settings{JournalSizeBytes: replication.MinJournalBytes},
	})
	b.must(err)
	b.must(g.AddVolume(rec, nil))
	v, err := g.Volume("vol-1")
	b.must(err)
	content := make([]byte, size)
	type cut struct {
		id     string
		number int
	}
	var taken []cut
	for i := range 6 {
		for j := range 10 {
			off, fill := int64(i*37+j*101)%(size/sector)*sector, byte(i*10+j+1)
			if j == 9 {
				b.must(v.Discard(off, 4*sector))
				copy(content[off:], make([]byte, 4*sector))
				continue
			}
			p := bytes.Repeat([]byte{fill}, sector)
			_, err := v.WriteAt(p, off)
			b.must(err)
			copy(content[off:], p)
		}
		taken = append(taken, cut{b.snapshot("vol-1", content), i})
	}
	check := func() {
		t.Helper()
		for j, target := range taken {
			b.rebuild("", target.id, 0)
			for _, base := range taken[:j] {
				named := b.rebuild(base.id, target.id, 2)
				if most := int64(target.number-base.number) * 11 * 64 << 10; named == 0 || named > most {
					t.Errorf("%s to %s: %d bytes are named, of at most %d that were written", base.id, target.id, named, most)
				}
				_, err := b.ask(target.id, base.id, 0, 0)
				wantCode(t, err, codes.InvalidArgument, base.id, target.id, "older")
			}
		}
	}
	check()
	for _, i := range []int{2, 0} { // one in the middle, the oldest
		_, err := (&controllerServer{d: d}).DeleteSnapshot(context.Background(),
			&csi.DeleteSnapshotRequest{SnapshotId: taken[i].id})
		b.must(err)
		taken = slices.Delete(taken, i, i+1)
	}
	check()
	// A damaged set is not believed: what is allocated is named instead, and that is right too.
	h := &node{t: t, mem: mem}
	h.truncate("/slipstream-test-pool/snapshots/"+taken[1].id+"/changes", 5)
	b.rebuild(taken[0].id, taken[1].id, 0)
}

func wantCode(t *testing.T, err error, code codes.Code, words ...string) {
	t.Helper()
	(&node{t: t}).want(err, code, words...)
}

func TestMetadataErrors(t *testing.T) {
	d := metadataDriver(t, vfs.NewMem(), "/slipstream-test-pool", "")
	defer d.Close()
	b := &backup{t: t, d: d, contents: map[string][]byte{}}
	v, w := newPlainVolume(b, "vol-1", mib), newPlainVolume(b, "vol-2", mib)
	v.snapshot()
	v.change(0, sector, 'a')
	v.snapshot()
	w.snapshot()
	old, target, other := v.taken[0], v.taken[1], w.taken[0]
	state := func(s blockdev.SnapshotState) {
		_, err := d.store.Pool.UpdateSnapshot(target, func(r *blockdev.SnapshotRecord) error {
			r.State, r.FailReason, r.CopiedBytes = s, "the disk was full", 4096
			return nil
		})
		b.must(err)
	}
	for _, tc := range []struct {
		name         string
		base, target string
		from         int64
		most         int32
		state        blockdev.SnapshotState
		code         codes.Code
		words        []string
	}{
		{name: "no snapshot", code: codes.InvalidArgument, words: []string{"snapshot_id"}},
		{name: "no target", base: old, code: codes.InvalidArgument, words: []string{"target_snapshot_id"}},
		{name: "unknown", target: "snap-x", code: codes.NotFound, words: []string{"snap-x"}},
		{name: "no id", target: "../x", code: codes.NotFound},
		{name: "unknown base", base: "snap-x", target: target, code: codes.NotFound,
			words: []string{"base_snapshot_id", "snap-x"}},
		{name: "unknown target", base: old, target: "snap-x", code: codes.NotFound, words: []string{"target_snapshot_id"}},
		{name: "negative offset", target: target, from: -1, code: codes.OutOfRange},
		{name: "offset behind the end", target: target, from: mib + 1, code: codes.OutOfRange,
			words: []string{target, "1048577", "1048576"}},
		{name: "offset behind the end of a delta", base: old, target: target, from: mib + 1, code: codes.OutOfRange},
		{name: "negative results", target: target, most: -1, code: codes.InvalidArgument},
		{name: "another volume", base: other, target: target, code: codes.InvalidArgument, words: []string{"vol-1", "vol-2"}},
		{name: "the same", base: target, target: target, code: codes.InvalidArgument},
		{name: "the wrong way round", base: target, target: old, code: codes.InvalidArgument,
			words: []string{"older", "exchange"}},
		{name: "not ready", target: target, state: blockdev.SnapshotCopying, code: codes.Unavailable,
			words: []string{"4096 of 1048576", "call again"}},
		{name: "delta, not ready", base: old, target: target, state: blockdev.SnapshotCreating, code: codes.Unavailable},
		{name: "failed", target: target, state: blockdev.SnapshotFailed, code: codes.FailedPrecondition,
			words: []string{"the disk was full"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.state != "" {
				state(tc.state)
				defer state(blockdev.SnapshotReady)
			}
			a, err := b.ask(tc.base, tc.target, tc.from, tc.most)
			wantCode(t, err, tc.code, tc.words...)
			if a.messages > 0 {
				t.Error("a refused call sent something")
			}
		})
	}
	// Behind the last byte there is nothing, and that is an answer.
	if got := b.ranges(old, target, mib, 0); len(got) > 0 {
		t.Errorf("behind the end: %v", got)
	}

	h := &node{t: t, mem: d.attachments.FS.(*vfs.MemFS)}
	path, err := d.store.Pool.SnapshotImagePath(target)
	b.must(err)
	h.truncate(path, 100)
	_, err = b.ask("", target, 0, 0)
	wantCode(t, err, codes.Internal, path, "100 of 1048576")
	b.must(h.mem.Remove(path))
	_, err = b.ask("", target, 0, 0)
	wantCode(t, err, codes.Internal, target)
}

// The tests above can fail: with a deliberate fault built in, they do.
func TestFaultsOfMetadataAreCaught(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the driver with deliberate faults")
	}
	testenv.RequireLoop(t)
	binary := filepath.Join(t.TempDir(), "faulty.test")
	flags, err := inject.Flags(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	args := slices.Concat([]string{"test", "-c", "-o", binary}, flags, []string{"."})
	if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for fault, test := range map[bug.Name]string{
		bug.MissDiscards:  "TestMetadataRebuilds",
		bug.SharedAnyway:  "TestMetadataRebuildsOnRealPools",
		bug.ForgetChanges: "TestMetadataOfGroup",
	} {
		cmd := exec.Command(binary, "-test.run", "^"+test+"$", "-rapid.nofailfile")
		cmd.Env = append(os.Environ(), "SLIPSTREAM_BUG="+string(fault))
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), "--- FAIL: "+test) || !strings.Contains(string(out), "rebuilt from") {
			t.Errorf("%s does not catch %s: %v\n%s", test, fault, err, out)
		}
	}
}

// TestMetadataStreamsEnd: a caller that went away, or does not take a message, ends the stream.
func TestMetadataStreamsEnd(t *testing.T) {
	d := metadataDriver(t, vfs.NewMem(), "/slipstream-test-pool", "")
	defer d.Close()
	b := &backup{t: t, d: d, contents: map[string][]byte{}}
	v := newPlainVolume(b, "vol-1", mib)
	v.change(0, sector, 'a')
	v.change(8*sector, sector, 'b')
	v.snapshot()
	s := &snapshotMetadataServer{d: d}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	err := s.GetMetadataAllocated(&csi.GetMetadataAllocatedRequest{SnapshotId: v.taken[0]},
		allocatedStream{&answer{ctx: ctx}})
	if status.Code(err) != codes.Canceled {
		t.Errorf("cancelled: %v", err)
	}
	a := &answer{ctx: context.Background(), most: 1}
	err = s.GetMetadataAllocated(&csi.GetMetadataAllocatedRequest{SnapshotId: v.taken[0], MaxResults: 2},
		allocatedStream{a})
	if err == nil || a.messages != 1 || !strings.Contains(err.Error(), "2 ranges of at most 1") {
		t.Errorf("after a failed send: %v, %d messages", err, a.messages)
	}
}
