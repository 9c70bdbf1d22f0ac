package sidecar

import (
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

const testVolumeBytes = 8 << 20

// A volume is attached, written through its file, and detached; each step can be repeated; a flushed write is where it
// has to be, in a group and without one.
func TestAttachWriteDetach(t *testing.T) {
	requireFUSE(t)
	for _, group := range []string{"", "shop"} {
		t.Run("group="+group, func(t *testing.T) {
			f := newFixture(t, newNetwork(t), "site-a", true)
			f.createVolume("v0", testVolumeBytes, true)
			if group != "" {
				f.createGroup(group, "")
				f.addVolume(group, "v0")
			}
			first := f.attach("v0")
			if again := f.attach("v0"); again.Path != first.Path || again.SizeBytes != testVolumeBytes || again.DirectIo {
				t.Fatalf("%v, again %v", first, again)
			}
			a := startApp(t, first.Path)
			a.must("write 8192 7")
			a.must("sync")
			if got := f.readDirect("v0", 8192); got != 7 {
				t.Fatalf("the flushed byte is %d", got)
			}
			if group != "" {
				_, err := f.client.DeleteGroup(f.ctx, &sidecarpb.DeleteGroupRequest{Name: group, Force: true})
				wantCode(t, "delete a group in use", err, codes.FailedPrecondition)
				if !f.status(group).Volumes[0].Attached {
					t.Error("the status does not say that it is attached")
				}
			}
			_, err := f.client.DetachVolume(f.ctx, &sidecarpb.DetachVolumeRequest{VolumeId: "v0"})
			wantCode(t, "detach under an application", err, codes.FailedPrecondition)
			a.must("write 12288 8") // it goes on
			a.close()
			f.detach("v0")
			f.detach("v0")
			if got := f.readDirect("v0", 12288); got != 8 {
				t.Fatalf("the byte written before the detachment is %d", got)
			}
			a = startApp(t, f.attach("v0").Path)
			if got := a.must("read 8192"); got != "7" {
				t.Fatalf("attached again, the byte is %s", got)
			}
			a.close()
			f.detach("v0")
		})
	}
}

// The replicator ends under an application and a new one takes over: no error, nothing lost, nothing mounted anew.
func TestRestartUnderApplication(t *testing.T) {
	requireFUSE(t)
	f := newFixture(t, newNetwork(t), "site-a", true)
	f.createGroup("shop", "")
	f.createVolume("v0", testVolumeBytes, true)
	f.createVolume("alone", testVolumeBytes, true)
	f.addVolume("shop", "v0")
	apps := map[string]*app{}
	paths := map[string]string{}
	for _, id := range []string{"v0", "alone"} {
		paths[id] = f.attach(id).Path
		apps[id] = startApp(t, paths[id])
		apps[id].must("write 0 1")
		apps[id].must("sync")
	}
	for round := range 3 {
		f.stop()
		// The applications' next calls wait in the kernel until a process serves again.
		done := make(chan error, len(apps))
		for _, a := range apps {
			go func() {
				_, err := a.do("write 4096 %d", round+10)
				if err == nil {
					_, err = a.do("sync")
				}
				done <- err
			}()
		}
		f.start()
		for range apps {
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
		for id, a := range apps {
			if got := f.readDirect(id, 4096); got != byte(round+10) {
				t.Fatalf("round %d: the flushed byte of %s is %d", round, id, got)
			}
			if got := a.must("read 0"); got != "1" {
				t.Fatalf("round %d: the old byte of %s is %s", round, id, got)
			}
			if again := f.attach(id).Path; again != paths[id] {
				t.Fatalf("%s moved from %s to %s", id, paths[id], again)
			}
		}
	}
	for id, a := range apps {
		a.close()
		f.detach(id)
	}
	// Detached for good: the next replicator has nothing to adopt.
	f.stop()
	f.start()
	entries, err := f.holder.Fetch(f.ctx)
	if err != nil || len(entries) != 0 {
		t.Fatalf("the keeper still holds %v, %v", entries, err)
	}
}

// TestServesWhatOpensLater: a replicator that cannot open a group without space serves its volume when it can,
// without a restart; the application's I/O waits, and the volume is not mounted a second time meanwhile.
func TestServesWhatOpensLater(t *testing.T) {
	requireFUSE(t)
	f := newFixture(t, newNetwork(t), "site-a", true)
	f.createGroup("shop", "")
	f.createVolume("v0", testVolumeBytes, true)
	f.addVolume("shop", "v0")
	a := startApp(t, f.attach("v0").Path)
	a.must("write 0 1")
	a.must("sync")
	f.stop()
	if err := f.site.Close(); err != nil {
		t.Fatal(err)
	}
	f.full.Store(true)
	f.openSite()
	f.start()
	done := make(chan error, 1)
	go func() {
		_, err := a.do("write 4096 2")
		if err == nil {
			_, err = a.do("sync")
		}
		done <- err
	}()
	_, err := f.client.AttachVolume(f.ctx, &sidecarpb.AttachVolumeRequest{VolumeId: "v0"})
	wantCode(t, "attaching what waits to be served again", err, codes.Unavailable)
	f.full.Store(false)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := f.readDirect("v0", 4096); got != 2 {
		t.Errorf("the flushed byte is %d", got)
	}
}

// A volume goes into a group while an application writes and flushes: every write is in the group afterwards, and at
// the peer, whichever side of the exchange it was made on.
func TestMoveIntoGroupUnderLoad(t *testing.T) {
	requireFUSE(t)
	network := newNetwork(t)
	f, peer := newFixture(t, network, "site-a", true), newFixture(t, network, "site-b", false)
	f.createVolume("v0", testVolumeBytes, true)
	path := f.attach("v0").Path
	a := startApp(t, path)
	var stop atomic.Bool
	var written atomic.Int64
	done := make(chan error, 1)
	go func() {
		var err error
		n := int64(0)
		for ; err == nil && !stop.Load() && n < testVolumeBytes/4096; n++ {
			if _, err = a.do("write %d %d", n*4096, n%251+1); err == nil && n%3 == 0 {
				_, err = a.do("sync")
			}
			written.Store(n)
		}
		if err == nil {
			_, err = a.do("sync")
		}
		written.Store(n)
		done <- err
	}()
	f.eventually("the application has written", func() bool { return written.Load() > 50 })
	f.createGroup("shop", "site-b")
	f.addVolume("shop", "v0")
	f.addVolume("shop", "v0")
	moved := written.Load()
	f.eventually("it has gone on writing", func() bool { return written.Load() > moved+50 || len(done) > 0 })
	stop.Store(true)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	n := written.Load()
	for i := range n {
		if got := f.readDirect("v0", i*4096); got != byte(i%251+1) {
			t.Fatalf("block %d of %d is %d; the volume was moved at %d", i, n, got, moved)
		}
	}
	if s := f.status("shop"); len(s.Volumes) != 1 || !s.Volumes[0].Attached {
		t.Fatalf("%v", s)
	}
	f.eventually("the peer has everything", func() bool {
		s := f.status("shop")
		return s.State == sidecarpb.GroupState_GROUP_STATE_STREAMING && s.GetAcknowledgedOrdinal() == s.HeadOrdinal &&
			s.ChangeMapBytes == 0
	})
	for i := range n {
		if got := peer.readDirect("v0", i*4096); got != byte(i%251+1) {
			t.Fatalf("block %d of %d is %d at the peer; the volume was moved at %d", i, n, got, moved)
		}
	}
	a.close()
	f.detach("v0")
}

// writer is an application that writes one block after the other, round and round, and flushes now and then.
type writer struct {
	a       *app
	stop    atomic.Bool
	written atomic.Int64
	done    chan error
}

const writerBlocks = testVolumeBytes / 4096

func startWriter(a *app) *writer {
	w := &writer{a: a, done: make(chan error, 1)}
	go func() {
		var err error
		n := int64(0)
		for ; err == nil && !w.stop.Load(); n++ {
			if _, err = a.do("write %d %d", n%writerBlocks*4096, n%251+1); err == nil && n%3 == 0 {
				_, err = a.do("sync")
			}
			w.written.Store(n + 1)
		}
		if err == nil {
			_, err = a.do("sync")
		}
		w.done <- err
	}()
	return w
}

// goesOn waits until the application has written more.
func (w *writer) goesOn(f *fixture) {
	f.t.Helper()
	from := w.written.Load()
	f.eventually("it has gone on writing", func() bool { return w.written.Load() > from+20 || len(w.done) > 0 })
}

// end stops the application and returns the first byte of each block.
func (w *writer) end(t *testing.T) (want [writerBlocks]byte) {
	t.Helper()
	w.stop.Store(true)
	if err := <-w.done; err != nil {
		t.Fatal(err)
	}
	for n := range w.written.Load() {
		want[n%writerBlocks] = byte(n%251 + 1)
	}
	return want
}

// A volume goes into a group, to another one, out of it and in again under an application that notices nothing; each
// replicator goes on where the last one ended.
func TestMoveBetweenGroupsUnderLoad(t *testing.T) {
	requireFUSE(t)
	network := newNetwork(t)
	f, peer := newFixture(t, network, "site-a", true), newFixture(t, network, "site-b", false)
	f.createVolume("v0", testVolumeBytes, true)
	a := startApp(t, f.attach("v0").Path)
	f.createGroup("shop", "site-b")
	f.createGroup("next", "site-b")
	w := startWriter(a)
	w.goesOn(f)
	move := func(group string) {
		t.Helper()
		if _, err := f.client.AddVolume(f.ctx, &sidecarpb.AddVolumeRequest{Group: group, VolumeId: "v0",
			Move: true}); err != nil {
			t.Fatal(err)
		}
		w.goesOn(f)
	}
	remove := func(group string) {
		t.Helper()
		for range 2 {
			if _, err := f.client.RemoveVolume(f.ctx, &sidecarpb.RemoveVolumeRequest{Group: group, VolumeId: "v0"}); err != nil {
				t.Fatal(err)
			}
		}
		w.goesOn(f)
	}
	for range 3 {
		f.addVolume("shop", "v0")
		w.goesOn(f)
		_, err := f.client.AddVolume(f.ctx, &sidecarpb.AddVolumeRequest{Group: "next", VolumeId: "v0"})
		wantCode(t, "into a second group", err, codes.FailedPrecondition)
		move("next")
		move("next")
		f.stop()
		f.start()
		w.goesOn(f)
		remove("next")
		f.stop()
		f.start()
		w.goesOn(f)
	}
	move("shop")
	want := w.end(t)
	f.eventually("the peer has everything", func() bool {
		s := f.status("shop")
		return s.State == sidecarpb.GroupState_GROUP_STATE_STREAMING && s.GetAcknowledgedOrdinal() == s.HeadOrdinal &&
			s.ChangeMapBytes == 0
	})
	for i, b := range want {
		if here, there := f.readDirect("v0", int64(i)*4096), peer.readDirect("v0", int64(i)*4096); here != b || there != b {
			t.Fatalf("block %d is %d, at the peer %d; %d was written last", i, here, there, b)
		}
	}
	a.close()
	f.detach("v0")
	if n := len(f.status("next").Volumes); n != 0 {
		t.Errorf("the group that it left has %d volumes", n)
	}
}

// A move that was interrupted between the two groups, or before the first step, is completed by the next replicator.
func TestMoveIsCompleted(t *testing.T) {
	requireFUSE(t)
	f := newFixture(t, newNetwork(t), "site-a", true)
	f.createGroup("shop", "")
	f.createGroup("next", "")
	for _, id := range []string{"in", "out"} {
		f.createVolume(id, testVolumeBytes, true)
		f.addVolume("shop", id)
	}
	a := startApp(t, f.attach("in").Path)
	a.must("write 0 7")
	a.must("sync")
	if _, err := f.client.RemoveVolume(f.ctx, &sidecarpb.RemoveVolumeRequest{Group: "shop", VolumeId: "out"}); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"in", "out"} {
		if err := f.svc.intend(id, "next"); err != nil {
			t.Fatal(err)
		}
	}
	f.stop()
	f.start()
	f.eventually("both are where they were to go", func() bool { return len(f.status("next").Volumes) == 2 })
	a.must("write 4096 8")
	a.must("sync")
	if got := f.readDirect("in", 4096); got != 8 {
		t.Errorf("the byte is %d", got)
	}
	f.eventually("nothing is left to do", func() bool {
		recs, err := f.pool.List()
		return err == nil && recs[0].MoveTo == "" && recs[1].MoveTo == ""
	})
	a.close()
	f.detach("in")
}

// A volume grows under its application, in a group and alone: the new space can be written at once.
func TestResizeUnderApplication(t *testing.T) {
	requireFUSE(t)
	f := newFixture(t, newNetwork(t), "site-a", true)
	f.createGroup("shop", "")
	for _, id := range []string{"alone", "v0"} {
		f.createVolume(id, testVolumeBytes, true)
		if id == "v0" {
			f.addVolume("shop", id)
		}
		a := startApp(t, f.attach(id).Path)
		for range 2 {
			r, err := f.client.ResizeVolume(f.ctx, &sidecarpb.ResizeVolumeRequest{VolumeId: id, SizeBytes: 2 * testVolumeBytes})
			if err != nil || r.SizeBytes != 2*testVolumeBytes {
				t.Fatalf("%s: %v, %v", id, r, err)
			}
		}
		a.must("write %d 9", 2*testVolumeBytes-4096)
		a.must("sync")
		if got := f.readDirect(id, 2*testVolumeBytes-4096); got != 9 {
			t.Fatalf("%s: the byte at the new end is %d", id, got)
		}
		if r := f.attach(id); r.SizeBytes != 2*testVolumeBytes {
			t.Fatalf("%s: attached with %d bytes", id, r.SizeBytes)
		}
		a.close()
		f.detach(id)
	}
}

// Limits of a volume's I/O hold at once, in a later replicator, and in a group; taken back they are gone.
func TestLimitsUnderApplication(t *testing.T) {
	requireFUSE(t)
	f := newFixture(t, newNetwork(t), "site-a", true)
	f.createGroup("shop", "")
	f.createVolume("v0", testVolumeBytes, true)
	a := startApp(t, f.attach("v0").Path)
	modify := func(iops int64) {
		t.Helper()
		if _, err := f.client.ModifyVolume(f.ctx, &sidecarpb.ModifyVolumeRequest{VolumeId: "v0", Iops: &iops}); err != nil {
			t.Fatal(err)
		}
	}
	// Each of these writes is at least one operation, of which a tenth of a second's worth is saved up.
	const iops, writes = 20, 20
	limited := func(when string) {
		t.Helper()
		begin := time.Now()
		for i := range writes {
			a.must("write %d %d", i%4*4096, i+1)
			a.must("sync")
		}
		if granted := int(iops*(time.Since(begin).Seconds()+0.1)) + 1; writes > granted {
			t.Errorf("%s: %d writes, %d were granted", when, writes, granted)
		}
	}
	says := func(limit float64, delayed bool) {
		t.Helper()
		values := f.volumeMetrics("v0")
		if got := values["slipstream_volume_limit_operations_per_second"]; got != limit || len(values) != 3 {
			t.Errorf("metrics %v, want a limit of %v", values, limit)
		}
		if got := values["slipstream_volume_delayed_operations_total"]; (got > 0) != delayed {
			t.Errorf("%v operations were delayed; some: %t", got, delayed)
		}
	}
	says(0, false)
	modify(iops)
	limited("set while attached")
	says(iops, true)
	f.addVolume("shop", "v0")
	limited("in a group")
	f.stop()
	f.start()
	limited("with the next replicator")
	says(iops, true)
	modify(0)
	says(0, true)
	rec, err := f.pool.Get("v0")
	if err != nil || rec.IOPS != 0 || rec.IOBytesPerSecond != 0 {
		t.Errorf("record %v, %v", rec, err)
	}
	bad := int64(-1)
	_, err = f.client.ModifyVolume(f.ctx, &sidecarpb.ModifyVolumeRequest{VolumeId: "v0", IoBytesPerSecond: &bad})
	wantCode(t, "a negative limit", err, codes.InvalidArgument)
	a.must("write 0 77")
	a.must("sync")
	a.close()
	f.detach("v0")
	if values := f.volumeMetrics("v0"); len(values) > 0 {
		t.Errorf("a volume that is not attached has metrics %v", values)
	}
	if got := f.readDirect("v0", 0); got != 77 {
		t.Errorf("the flushed byte is %d", got)
	}
}
