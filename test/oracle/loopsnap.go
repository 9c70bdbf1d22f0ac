package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/internal/testsite"
)

// loopSnapshot is a group snapshot that was taken through the driver under load; it is judged later, when copies of it,
// kills and links may have come in between.
type loopSnapshot struct {
	at *testsite.Site
	id string
	// must: everything that had returned before this is in it.
	must uint64
}

// snapshot takes a group snapshot of all volumes at one of the sites, while the writers run.
func (r *loopRound) snapshot() error {
	s := r.sites.pair.A
	if r.rng.IntN(2) == 0 {
		s = r.sites.pair.B
	}
	must := r.ackedClock
	if s == r.sites.pair.A {
		if _, must = r.h.flushed(); r.order == afterAck {
			_, must = r.h.acknowledged()
		}
	}
	r.snapshotsMade++
	name := fmt.Sprintf("%s-%d", r.group, r.snapshotsMade)
	group, err := s.GroupSnapshot(r.ctx, name, r.volumes, nil)
	if code := status.Code(errors.Unwrap(err)); s == r.sites.pair.B &&
		(code == codes.FailedPrecondition || code == codes.NotFound || code == codes.Aborted) {
		// In the middle of a sync, or before the secondary has heard of the volumes.
		r.h.note("no snapshot at %s: %v", s.Config.Name, err)
		r.tally.refusedSnapshots.Add(1)
		return nil
	}
	if err != nil {
		return r.h.violation("no snapshot can be taken: %v", err)
	}
	if n := len(group.GetSnapshots()); n != len(r.volumes) {
		return r.h.violation("a group snapshot of %d volumes has %d snapshots", len(r.volumes), n)
	}
	r.h.note("a snapshot was taken at %s", s.Config.Name)
	r.tally.snapshots.Add(1)
	if s == r.sites.pair.B {
		r.tally.secondarySnapshots.Add(1)
	}
	if r.rng.IntN(3) == 0 {
		again, err := s.GroupSnapshot(r.ctx, name, r.volumes, nil)
		if err != nil || again.GetGroupSnapshotId() != group.GetGroupSnapshotId() {
			return r.h.violation("the same group snapshot taken again is %v, not %v: %v", again, group, err)
		}
	}
	r.snapshots = append(r.snapshots, loopSnapshot{s, group.GetGroupSnapshotId(), must})
	return nil
}

// judgeSnapshots waits for copies, judges what the snapshots hold, and deletes them. Writers and everything else go on.
func (r *loopRound) judgeSnapshots() error {
	for _, snap := range r.snapshots {
		group, err := snap.at.GetGroupSnapshot(r.ctx, snap.id)
		for err == nil && !group.GetReadyToUse() {
			if err = r.pause(20 * time.Millisecond); err == nil {
				group, err = snap.at.GetGroupSnapshot(r.ctx, snap.id)
			}
		}
		if err != nil {
			return r.h.violation("a group snapshot does not become ready: %v", err)
		}
		shown, err := r.readSnapshot(snap.at, group)
		if err != nil {
			return err
		}
		if err := r.h.checkOrder("the group snapshot at "+snap.at.Config.Name, shown, snap.must, r.order); err != nil {
			return err
		}
		r.tally.judgedSnapshots.Add(1)
		if err := snap.at.DeleteGroupSnapshot(r.ctx, snap.id); err != nil {
			return err
		}
	}
	r.snapshots = nil
	return nil
}

func (r *loopRound) readSnapshot(s *testsite.Site, group *csi.VolumeGroupSnapshot) (content, error) {
	c := make(content, len(r.volumes))
	for i, v := range r.volumes {
		for _, member := range group.GetSnapshots() {
			if member.GetSourceVolumeId() != v.ID {
				continue
			}
			f, err := os.Open(s.SnapshotImage(member.GetSnapshotId()))
			if err != nil {
				return nil, err
			}
			c[i], err = r.h.read(r.seed, i, &device{f, member.GetSizeBytes()}, false)
			if err = errors.Join(err, f.Close()); err != nil {
				return nil, fmt.Errorf("snapshot of volume %d at %s: %w", i, s.Config.Name, err)
			}
		}
		if c[i].units == nil {
			return nil, r.h.violation("the group snapshot at %s has no snapshot of volume %d", s.Config.Name, i)
		}
	}
	return c, nil
}
