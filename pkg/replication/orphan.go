package replication

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
)

// A copy outlives its group: when the primary takes a volume out, when the group is deleted here, when the peer is
// gone for good. It may be the last copy, so nothing deletes it but a person, and what this site said before: its CO
// has deleted the volume (VolumeRecord.Unwanted), or the group deletes removed copies (Settings.DeleteRemovedCopies).

// Copy is a copy of another site's volume that is in no group here, or that goes with its primary.
type Copy struct {
	VolumeID, Name            string
	SizeBytes, AllocatedBytes int64
	// Peer is the site of the primary. Group is the group that the copy is in, or that it was in last; empty where an
	// earlier release did not note it.
	Peer, Group string
	// LeftUnixNanos is when it left the group, by this site's clock; 0 where that is not known, and for one that is in the
	// group.
	LeftUnixNanos int64
	// Member: the copy is in the group. It is deleted when the primary takes the volume out of the group.
	Member bool
	Claim  blockdev.ClaimRecord
}

// Copies returns the copies that are in no group, and those in a group that this site's CO has deleted, by volume id.
// Records that cannot be read are left out; the error names them.
func (s *Site) Copies() ([]Copy, error) {
	recs, err := s.cfg.Pool.List()
	var list []Copy
	for _, rec := range recs {
		c := Copy{VolumeID: rec.ID, Name: rec.Name, SizeBytes: rec.SizeBytes}
		switch left := rec.CopyOf(); {
		case left != nil:
			c.Peer, c.Group, c.LeftUnixNanos = left.Peer, left.Group, left.UnixNanos
		case rec.Group != "" && rec.Unwanted:
			c.Peer, c.Group, c.Member = rec.Remote, rec.Group, true
		default:
			continue
		}
		if rec.Claim != nil {
			c.Claim = *rec.Claim
		}
		if n, sizeErr := s.cfg.Pool.AllocatedTogether(s.cfg.Pool.ImagePaths(rec.ID)); sizeErr == nil {
			c.AllocatedBytes = n
		}
		list = append(list, c)
	}
	slices.SortFunc(list, func(a, b Copy) int { return strings.Compare(a.VolumeID, b.VolumeID) })
	return list, err
}

// DeleteCopy deletes a copy that is in no group. ErrNotFound: there is no such volume. A volume that is no such copy,
// or that is in use, is refused, and nothing was changed.
func (s *Site) DeleteCopy(id string) error {
	// With the lock held no group takes the copy over.
	s.quotaMu.Lock()
	defer s.quotaMu.Unlock()
	rec, err := s.cfg.Pool.Get(id)
	switch {
	case errors.Is(err, blockdev.ErrNoVolume):
		return fmt.Errorf("%w: there is no volume %s at %s", ErrNotFound, id, s.cfg.Site)
	case err != nil:
		return err
	case rec.Group != "":
		return fmt.Errorf("%w: volume %s is in group %s, so it is no copy without a group; take it out of the group at its "+
			"primary, or delete the group here first (slipctl group delete %s --force)", core.ErrPrecondition, id, rec.Group,
			rec.Group)
	case rec.CopyOf() == nil:
		return fmt.Errorf("%w: volume %s was made at %s and is no copy of another site's volume; delete its persistent "+
			"volume, or without Kubernetes `slipctl volume delete %[2]s`", core.ErrPrecondition, id, s.cfg.Site)
	case rec.Stage != nil:
		return fmt.Errorf("%w: volume %s is staged at %s; unstage it first", ErrInUse, id, rec.Stage.StagingPath)
	}
	klog.InfoS("Deleting a copy", "volume", id, "peer", rec.CopyOf().Peer, "group", rec.CopyOf().Group)
	return s.cfg.Pool.Delete(id)
}

// deleteRemoved deletes the copy of a volume that the primary took out of this group, if this site wants that. It comes
// before the record of the removal is in the journal, so a crash makes the peer send that again. A copy that cannot be
// deleted stays, in no group: it must not keep the stream from going on.
func (cp *copies) deleteRemoved(m core.Member) {
	g := cp.g
	g.mu.Lock()
	always, peer := g.core.Meta.DeleteRemovedCopies, g.core.Meta.Peer
	g.mu.Unlock()
	rec, err := g.cfg.Pool.Get(m.VolumeID)
	switch {
	case errors.Is(err, blockdev.ErrNoVolume):
		return
	case err != nil:
	case !rec.Secondary || rec.Group != "" || rec.Joins > m.Joins:
		return // another group has it, or had it since
	case rec.Left == nil || rec.Left.Group != g.Name() || rec.Left.Peer != peer:
		return
	case rec.Unwanted || always:
		klog.InfoS("Deleting the copy of a volume that left its group at the primary", "volume", m.VolumeID, "group",
			g.Name(), "peer", peer)
		err = g.cfg.Pool.Delete(m.VolumeID)
	}
	if err != nil {
		klog.ErrorS(err, "The copy of a volume that left its group stays; slipctl copy delete deletes it", "volume",
			m.VolumeID, "group", g.Name())
	}
}
