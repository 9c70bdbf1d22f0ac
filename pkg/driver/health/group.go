package health

import (
	"context"
	"fmt"
	"strings"

	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
)

// groupsView is what the replicator says about its groups.
type groupsView struct {
	byName map[string]*sidecarpb.GroupStatus
	// Broken has a line for each group that could not be opened; what volumes are in them is not known.
	Broken []string
	Err    error // a status error; nothing else is set then
}

// ViewGroups asks the replicator. It waits for one that is being restarted: its absence is reported as a condition, and
// one that is back in a second is none.
func (d *Checker) ViewGroups(ctx context.Context) groupsView {
	if err := d.sidecar.Need(ctx); err != nil {
		return groupsView{Err: err}
	}
	groups, err := d.sidecar.Groups(ctx)
	if err != nil {
		return groupsView{Err: err}
	}
	view := groupsView{byName: map[string]*sidecarpb.GroupStatus{}}
	for _, g := range groups {
		if g.GetGroupId() == "" {
			view.Broken = append(view.Broken, fmt.Sprintf("%s: %s", g.GetName(), g.GetStateReason()))
			continue
		}
		view.byName[g.GetName()] = g
	}
	return view
}

// groupHealth adds the conditions of a replicable volume's group.
func (s *Survey) groupHealth(found *Conditions, rec *blockdev.VolumeRecord) {
	view := s.groups()
	if view.Err != nil {
		found.add(inaccessible, ReasonReplicatorUnavailable, "volume %s: its I/O, staging and unstaging wait for the "+
			"replicator: %s",
			rec.ID, status.Convert(view.Err).Message())
		return
	}
	if rec.Group == "" {
		return
	}
	g, ok := view.byName[rec.Group]
	if !ok {
		why := "see what the replicator logged when it started"
		if len(view.Broken) > 0 {
			why = "groups that it could not open: " + strings.Join(view.Broken, "; ")
		}
		found.add(inaccessible, ReasonGroupUnavailable, "volume %s is in group %s, which the replicator does not serve; %s",
			rec.ID, rec.Group, why)
		return
	}
	GroupConditions(found, rec, g)
}

// maxNamedExtents is how many extents a condition names.
const maxNamedExtents = 8

// GroupConditions says what a group's status means for its volumes. What goes by itself within a moment, as a first
// contact does, is reported all the same while it lasts: nothing is replicated meanwhile.
func GroupConditions(found *Conditions, rec *blockdev.VolumeRecord, g *sidecarpb.GroupStatus) {
	because := func(otherwise string) string {
		if r := g.GetStateReason(); r != "" {
			return r
		}
		return otherwise
	}
	switch g.GetState() {
	case sidecarpb.GroupState_GROUP_STATE_FAILED:
		found.add(inaccessible, ReasonGroupUnavailable, "volume %s: its group %s failed: %s; put that right, then restart "+
			"the replicator (not needed where it was because there was no space)",
			rec.ID, g.GetName(), because("see what the replicator logged"))
		return
	case sidecarpb.GroupState_GROUP_STATE_DIVERGED:
		found.add(degraded, ReasonReplicationDiverged, "volume %s: group %s and its copy at %s both took writes after a "+
			"common point: %s; "+
			"nothing is replicated until one of them is given up (slipctl group status %s; slipctl group delete --force, and "+
			"its volumes, at that site)",
			rec.ID, g.GetName(), g.GetPeer(), because("their histories differ"), g.GetName())
		return
	case sidecarpb.GroupState_GROUP_STATE_DEMOTED:
		found.add(inaccessible, ReasonGroupDemoted, "volume %s: its group %s was demoted and takes no writes here: %s, or "+
			"here (slipctl group promote %s)",
			rec.ID, g.GetName(), because("promote it at its peer"), g.GetName())
		return
	case sidecarpb.GroupState_GROUP_STATE_CONNECTING:
		found.add(degraded, ReasonReplicationSuspended, "volume %s: its group %s has no contact with %s and is not "+
			"replicated meanwhile: %s",
			rec.ID, g.GetName(), g.GetPeer(), because("see that the replicator there runs and can be reached"))
	case sidecarpb.GroupState_GROUP_STATE_TRIAL:
		found.add(degraded, ReasonReplicationSuspended, "volume %s: its group %s is not replicated: %s", rec.ID, g.GetName(),
			because("it is open at a point, and that is not decided"))
	case sidecarpb.GroupState_GROUP_STATE_SUSPENDED:
		found.add(degraded, ReasonReplicationSuspended, "volume %s: replication of its group %s was suspended: %s", rec.ID,
			g.GetName(), because("slipctl group resume "+g.GetName()+" continues"))
	case sidecarpb.GroupState_GROUP_STATE_SYNCING:
		found.add(degraded, ReasonReplicationSyncing, "volume %s: the copy of its group %s at the secondary is not "+
			"complete and cannot be promoted until the sync ends "+
			"(%s)", rec.ID, g.GetName(), syncText(g))
	}
	if reason := g.GetApplyError(); reason != "" {
		found.add(degraded, ReasonApplyStuck, "volume %s: writes of its group %s reach the journal, but not the images: %s; "+
			"they go on when that is put right", rec.ID, g.GetName(), reason)
	}
	if text := differencesText(rec, g.GetVerify()); text != "" {
		found.add(degraded, ReasonSitesDiffer, "volume %s: its images at the two sites of group %s differ at ordinal %d: "+
			"%s; decide which site is right, and give slipctl group repair %s at the other one", rec.ID, g.GetName(),
			g.GetVerify().GetOrdinal(), text, g.GetName())
	}
	if g.GetLagging() {
		found.add(degraded, ReasonReplicationLagging, "volume %s: the copy of its group %s lags %s behind, its RPO target "+
			"is %.1f s: "+
			"see the link, the load and the group's rate limit (slipctl group status %s)", rec.ID, g.GetName(), lagText(g),
			g.GetRpoTargetSeconds(), g.GetName())
	}
	if g.GetHistoryShort() {
		found.add(degraded, ReasonHistoryShort, "volume %s: the history of its group %s is shorter than asked: the journal "+
			"of %s does not hold it, or a snapshot ended it; make the journal larger at %s (slipctl group set %s "+
			"--journal-size), or ask for less", rec.ID, g.GetName(), words.Count(g.GetJournalSizeBytes(), "byte"),
			g.GetPeer(), g.GetName())
	}
	size, used := g.GetJournalSizeBytes(), g.GetJournalUsedBytes()
	if g.GetRole() == sidecarpb.Role_ROLE_PRIMARY && g.GetJournalFull() == sidecarpb.JournalFull_JOURNAL_FULL_STALL &&
		size > 0 &&
		size-used < size/100*nearlyFullPercent {
		found.add(degraded, ReasonJournalNearlyFull, "volume %s: the journal of its group %s holds %d of %s, and "+
			"when it is full writes wait for %s: "+
			"see that the peer can be reached", rec.ID, g.GetName(), used, words.Count(size, "byte"), g.GetPeer())
	}
}

// differencesText names the extents of a volume that differ, or says that they are not all known; empty for none.
func differencesText(rec *blockdev.VolumeRecord, v *sidecarpb.VerifyStatus) string {
	var offsets []string
	for _, d := range v.GetDifferences() {
		if d.GetVolumeId() == rec.ID && len(offsets) < maxNamedExtents {
			offsets = append(offsets, fmt.Sprint(d.GetOffsetBytes()))
		}
	}
	switch {
	case len(offsets) > 0:
		return "extents of 64 KiB at " + strings.Join(offsets, ", ")
	case v.GetDifferenceCount() > uint64(len(v.GetDifferences())):
		return fmt.Sprintf("%s of the group, not all of which are named", words.Count(v.GetDifferenceCount(), "extent"))
	}
	return ""
}

// lagText is how far a copy is behind at most.
func lagText(g *sidecarpb.GroupStatus) string {
	if g.LagSeconds == nil {
		return "for an unknown time"
	}
	return fmt.Sprintf("%.1f s", g.GetLagSeconds())
}

// syncText is how far a sync is, which its primary alone knows.
func syncText(g *sidecarpb.GroupStatus) string {
	if g.SyncTotalBytes == nil {
		return "its primary knows how far it is"
	}
	return fmt.Sprintf("%d of %s", g.GetSyncDoneBytes(), words.Count(g.GetSyncTotalBytes(), "byte"))
}
