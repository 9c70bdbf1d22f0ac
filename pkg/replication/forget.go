package replication

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/replication/core"
)

// PeerUse is what this site has of a peer.
type PeerUse struct {
	Peer string
	// Primary, Secondary and Broken are names of groups that replicate with it: the role is the one here. A broken group
	// cannot be opened.
	Primary, Secondary, Broken []string
	// Connected are the groups with a stream to or from it.
	Connected []string
	// Copies are copies of its volumes that are in no group.
	Copies []string
}

// Peers returns the sites that groups or copies of this site are of, by name.
func (s *Site) Peers() ([]PeerUse, error) {
	uses := map[string]*PeerUse{}
	of := func(peer string) *PeerUse {
		if uses[peer] == nil {
			uses[peer] = &PeerUse{Peer: peer}
		}
		return uses[peer]
	}
	for _, g := range s.Groups() {
		st := g.Status()
		if st.Peer == "" {
			continue
		}
		u := of(st.Peer)
		if st.Role == core.RoleSecondary {
			u.Secondary = append(u.Secondary, st.Name)
		} else {
			u.Primary = append(u.Primary, st.Name)
		}
		if st.Connected {
			u.Connected = append(u.Connected, st.Name)
		}
	}
	for dir := range s.Broken() {
		if meta, err := loadMeta(s.cfg.FS, dir+"/"+core.MetaFile); err == nil && meta.Peer != "" {
			of(meta.Peer).Broken = append(of(meta.Peer).Broken, meta.Name)
		}
	}
	copies, err := s.Copies()
	for _, c := range copies {
		if !c.Member && c.Peer != "" {
			of(c.Peer).Copies = append(of(c.Peer).Copies, c.VolumeID)
		}
	}
	var list []PeerUse
	for _, u := range uses {
		slices.Sort(u.Broken)
		list = append(list, *u)
	}
	slices.SortFunc(list, func(a, b PeerUse) int { return cmp.Compare(a.Peer, b.Peer) })
	return list, err
}

// ForgetPeer ends what this site has to do with a peer that is gone for good. Groups that are primary or demoted here
// become groups without a peer, primary. Groups that are secondary here do too, with what has arrived; or, with
// deleteCopies, they are deleted with their copies, and with the copies of the peer that are in no group.
//
// ErrNotFound: nothing here is of the peer. A peer that is connected is refused, and so is a group that cannot be kept
// or deleted; nothing was changed then. After another error some groups may be done; repeating the call goes on.
func (s *Site) ForgetPeer(peer string, deleteCopies bool) (PeerUse, error) {
	list, err := s.Peers()
	i := slices.IndexFunc(list, func(u PeerUse) bool { return u.Peer == peer })
	if err != nil && (deleteCopies || i < 0) {
		return PeerUse{}, err
	}
	if i < 0 {
		return PeerUse{}, fmt.Errorf("%w: no group and no copy at %s is of a site %q", ErrNotFound, s.cfg.Site, peer)
	}
	use := list[i]
	if err := s.mayForget(use, deleteCopies); err != nil {
		return use, err
	}
	if deleteCopies {
		err = s.deleteCopiesOf(use)
		use.Secondary, use.Copies = nil, nil
		if err != nil {
			return use, err
		}
	}
	for _, name := range append(slices.Clone(use.Primary), use.Secondary...) {
		g, err := s.Group(name)
		if errors.Is(err, ErrNotFound) {
			continue // deleted meanwhile
		}
		if err == nil {
			err = g.forgetPeerForGood(peer)
		}
		if err != nil {
			return use, err
		}
	}
	klog.InfoS("Peer forgotten", "peer", peer, "groups", append(use.Primary, use.Secondary...), "copiesDeleted",
		deleteCopies)
	return use, nil
}

// mayForget looks at everything before anything is changed.
func (s *Site) mayForget(use PeerUse, deleteCopies bool) error {
	if len(use.Connected) > 0 {
		return fmt.Errorf("%w: site %s is connected for group %s, so it is not gone; move its groups here and take it out "+
			"of them (slipctl group set %s --remote \"\")", core.ErrPrecondition, use.Peer, use.Connected[0], use.Connected[0])
	}
	if len(use.Broken) > 0 {
		return fmt.Errorf("%w: group %s of site %s cannot be opened here; repair it, or give it up (slipctl group delete "+
			"%s --force)", core.ErrPrecondition, use.Broken[0], use.Peer, use.Broken[0])
	}
	for _, name := range use.Secondary {
		g, err := s.Group(name)
		if err == nil && !deleteCopies && !g.Status().Promotable {
			return fmt.Errorf("%w: group %s has no whole copy here, so it cannot be kept; delete it first (slipctl group "+
				"delete %s --force)", core.ErrPrecondition, name, name)
		}
	}
	return nil
}

func (s *Site) deleteCopiesOf(use PeerUse) error {
	ids := slices.Clone(use.Copies)
	for _, name := range use.Secondary {
		g, err := s.Group(name)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		for _, v := range g.Volumes() {
			ids = append(ids, v.ID())
		}
		if err := s.DeleteGroup(name, true); err != nil {
			return err
		}
	}
	slices.SortFunc(ids, strings.Compare)
	for _, id := range ids {
		if err := s.DeleteCopy(id); err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
	}
	return nil
}

// forgetPeerForGood makes the group primary here, without a peer.
func (g *Group) forgetPeerForGood(peer string) error {
	if _, err := g.Promote(true); err != nil {
		return err
	}
	g, err := g.site.Group(g.Name()) // another one after a promotion in the middle of a sync
	if err != nil {
		return err
	}
	return g.settings.modify(func(next *core.Settings) {
		if next.Peer == peer {
			next.SetPeer("")
			next.JournalFull = core.PolicyTrack // which stall needs a peer for
		}
	}, true)
}
