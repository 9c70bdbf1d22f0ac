package replication

import (
	"errors"
	"fmt"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
)

// Limits are what the groups of one peer may take of this site. Those that are 0 have their default.
type Limits struct {
	// Groups is how many secondary groups a peer may have here, and Members how many volumes in them together, with the
	// copies whose volumes have left their groups. Defaults 512 and 4096; each volume takes a descriptor of the process.
	Groups, Members int
	// PoolPercent bounds what a peer's copies may become: the sizes of their volumes and the most that their journals
	// take, in percent of the pool's file system. Default 80. Above 100 it overcommits.
	PoolPercent int
	// ReservePercent is how much of the pool's file system copies leave free for this site's own volumes. Default 5.
	ReservePercent int
	// JournalBytes is the largest journal of a copy. What the primary has is a hint: the copy gets the same up to this,
	// and up to a sixteenth of the file system of the journals. Default 8 GiB.
	JournalBytes int64
	// Timelines is how many timelines a group may have; each promotion adds one. Default 1024, at most core.MaxTimelines.
	Timelines int
}

// Check says which limit cannot be.
func (l *Limits) Check() error {
	switch {
	case l.Groups < 0 || l.Members < 0 || l.PoolPercent < 0:
		return errors.New("a limit of what a peer may take is negative")
	case l.ReservePercent < 0 || l.ReservePercent >= 100:
		return fmt.Errorf("%d %% of the pool cannot be left free by copies: want 0 to 99", l.ReservePercent)
	case l.JournalBytes != 0 && (l.JournalBytes < MinJournalBytes || l.JournalBytes > core.MaxJournalBytes):
		return fmt.Errorf("the largest journal of a copy, %s, must be from %d to %d",
			words.Count(l.JournalBytes, "byte"), int64(MinJournalBytes), int64(core.MaxJournalBytes))
	case l.Timelines < 0 || l.Timelines > core.MaxTimelines:
		return fmt.Errorf("%s for a group: the most is %d", words.Count(l.Timelines, "timeline"), core.MaxTimelines)
	}
	return nil
}

// DefaultLimits are used for what is 0.
var DefaultLimits = Limits{Groups: 512, Members: 4096, PoolPercent: 80, ReservePercent: 5, JournalBytes: 8 << 30,
	Timelines: 1024}

func (l *Limits) setDefaults() {
	for _, v := range []struct{ value, def *int }{
		{&l.Groups, &DefaultLimits.Groups}, {&l.Members, &DefaultLimits.Members},
		{&l.PoolPercent, &DefaultLimits.PoolPercent},
		{&l.ReservePercent, &DefaultLimits.ReservePercent}, {&l.Timelines, &DefaultLimits.Timelines},
	} {
		if *v.value == 0 {
			*v.value = *v.def
		}
	}
	if l.JournalBytes == 0 {
		l.JournalBytes = DefaultLimits.JournalBytes
	}
}

// ErrQuota: a peer wants more than this site gives it; the text says which limit, and the flag that has it. Nothing was
// changed.
var ErrQuota = errors.New("limit of a peer")

// maxListedMembers bounds a group's list of members, those that have left included: it is in group.json and in each
// sync's first record.
const maxListedMembers = 16 << 10

// share is a percentage of a number of bytes.
func share(bytes int64, percent int) int64 { return int64(float64(bytes) * float64(percent) / 100) }

// copyJournalBytes is the size of a copy's journal here, where its primary has one of hint bytes.
func (s *Site) copyJournalBytes(hint int64) int64 {
	limit := s.cfg.Limits.JournalBytes
	total, _, err := s.cfg.Pool.JournalSpace()
	if err != nil {
		klog.ErrorS(err, "The journal of a copy is limited by --peer-max-journal alone", "bytes", limit)
	} else {
		limit = min(limit, total/16>>20<<20)
	}
	return min(hint, max(limit, MinJournalBytes))
}

// tally is what a peer has here.
type tally struct {
	groups, members int
	bytes           int64            // sizes of copies, and the most that journals take
	sizes           map[string]int64 // of the copies
}

// tallyOf adds up what a peer has here. The caller holds s.mu.
func (s *Site) tallyOf(peer string) (tally, error) {
	t := tally{sizes: map[string]int64{}}
	for _, g := range s.groups {
		g.mu.Lock()
		m := &g.core.Meta
		if m.Role == core.RoleSecondary && m.Peer == peer {
			t.groups++
			t.bytes += m.JournalLimitBytes()
		}
		g.mu.Unlock()
	}
	recs, err := s.cfg.Pool.List()
	if err != nil && recs == nil {
		return t, err
	}
	for _, r := range recs { // one that cannot be read has no owner
		if r.Secondary && r.Remote == peer {
			t.members++
			t.bytes += r.SizeBytes
			t.sizes[r.ID] = r.SizeBytes
		}
	}
	return t, nil
}

// admitGroup says why a peer cannot have one more group here, with a journal of that size. The caller holds s.mu.
func (s *Site) admitGroup(peer, group string, journalBytes int64) error {
	t, err := s.tallyOf(peer)
	if err != nil {
		return err
	}
	if l := s.cfg.Limits.Groups; t.groups >= l {
		return fmt.Errorf("%w: group %s: site %s has %s of site %s, and takes %d (--peer-max-groups of its "+
			"replicators)", ErrQuota, group, s.cfg.Site,
			words.Count(t.groups, "group"), peer, l)
	}
	settings := core.Settings{JournalSizeBytes: journalBytes, JournalFull: core.PolicyTrack}
	return s.admitBytes(peer, "group "+group, t.bytes, settings.JournalLimitBytes())
}

// journalBytes is the size that a copy's journal gets when its primary has one of hint bytes now; it stays
// where the peer has no more.
func (cp *copies) journalBytes(hint, now int64) int64 {
	g := cp.g
	s, peer := g.site, g.peer()
	next := s.copyJournalBytes(hint)
	if next <= now {
		return next
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t, err := s.tallyOf(peer)
	if err == nil {
		err = s.admitBytes(peer, "the journal of group "+g.Name(), t.bytes, 2*(next-now))
	}
	if err != nil {
		klog.ErrorS(err, "The journal of a copy stays as large as it is", "group", g.Name(), "bytes", now)
		return now
	}
	return next
}

// admitBytes says why a peer that has some bytes here cannot have more.
func (s *Site) admitBytes(peer, what string, has, more int64) error {
	total, _, err := s.cfg.Pool.Space()
	if err != nil {
		return err
	}
	if limit := share(total, s.cfg.Limits.PoolPercent); more > 0 && has+more > limit {
		return fmt.Errorf("%w: %s needs %s at site %s, where copies and journals of site %s have %d and may have "+
			"%d, %d %% of the pool's file system (--peer-max-percent of its replicators)",
			ErrQuota, what, words.Count(more, "byte"), s.cfg.Site, peer, has, limit, s.cfg.Limits.PoolPercent)
	}
	return nil
}

// admit says why members that the primary announces cannot be made, or grown, here. They are otherwise sound
// (checkMembers).
func (cp *copies) admit(members []core.Member) error {
	g := cp.g
	if len(members) > maxListedMembers {
		return fmt.Errorf("%w: group %s has %s, with those that have left; the limit is %d", ErrQuota, g.Name(),
			words.Count(len(members), "member"), maxListedMembers)
	}
	s, peer := g.site, g.peer()
	s.mu.Lock()
	defer s.mu.Unlock()
	t, err := s.tallyOf(peer)
	if err != nil {
		return err
	}
	g.mu.Lock()
	for _, m := range g.core.Meta.Members { // of a group that was primary a moment ago, too
		t.sizes[m.VolumeID] = max(t.sizes[m.VolumeID], m.SizeBytes)
	}
	g.mu.Unlock()
	var more, thick int64
	for _, m := range members {
		if m.Removed() {
			continue
		}
		grows := m.SizeBytes
		if has, there := t.sizes[m.VolumeID]; there {
			grows = max(0, m.SizeBytes-has)
		} else if t.members++; t.members > s.cfg.Limits.Members {
			return fmt.Errorf("%w: volume %s of group %s is one more than the %s that site %s takes of site %s "+
				"(--peer-max-volumes of its replicators)",
				ErrQuota, m.VolumeID, g.Name(), words.Count(s.cfg.Limits.Members, "volume"), s.cfg.Site, peer)
		}
		more += grows
		if m.Thick {
			thick += grows
		}
	}
	if err := s.admitBytes(peer, "group "+g.Name(), t.bytes, more); err != nil || thick == 0 {
		return err
	}
	return s.leaveReserve(thick)
}

// leaveReserve says why copies cannot take some more bytes now: what would be left free is for this site's own volumes.
func (s *Site) leaveReserve(bytes int64) error {
	total, free, err := s.cfg.Pool.Space()
	if err != nil {
		return err
	}
	if reserve := share(total, s.cfg.Limits.ReservePercent); bytes > 0 && free-bytes < reserve {
		return fmt.Errorf("%w: the copy needs %s now; site %s has %d free in its pool and leaves %d to its own "+
			"volumes (--copies-reserve-percent of its replicators); make room there, the copy continues then", ErrQuota,
			words.Count(bytes, "byte"), s.cfg.Site, free, reserve)
	}
	return nil
}

// leaveReserve is Site.leaveReserve for records that have arrived and those before them that are not in the images yet.
// What other groups have in their journals at the moment is not counted.
func (cp *copies) leaveReserve(records []link.Record) error {
	g := cp.g
	var bytes int64
	for i := range records {
		switch h := &records[i].Header; {
		case h.Kind == journal.KindDiscard || h.Kind == journal.KindHole:
		default:
			bytes += int64(h.Length)
		}
	}
	kept, err := g.resync.keepBytes(records)
	if err != nil {
		return err
	}
	if bytes+kept == 0 {
		return nil // giving back always goes on
	}
	for _, v := range *g.members.list.Load() {
		bytes += v.overlay.Bytes()
	}
	if kept > 0 {
		bytes += bytes + kept // what waits in the journal is kept, too, before it is applied
	}
	return g.site.leaveReserve(bytes)
}
