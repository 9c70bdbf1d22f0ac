package replication

import (
	"errors"
	"fmt"
	"slices"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
)

// store makes the pool's volume what the member says: at a secondary it is created, at both sites it grows. The
// member gets the identity of its image.
func (ms *members) store(m *core.Member) error {
	g := ms.g
	pool := g.cfg.Pool
	g.mu.Lock()
	secondary, group, peer := g.core.Meta.Role == core.RoleSecondary, g.core.Meta.Name, g.core.Meta.Peer
	g.mu.Unlock()
	described, err := describe(*m)
	if err != nil {
		return fmt.Errorf("%w: group %s: %w", ErrInvalid, group, err)
	}
	format, claim := described.Format, described.Claim
	rec, err := pool.Get(m.VolumeID)
	if errors.Is(err, blockdev.ErrNoVolume) && secondary {
		described.Group, described.Remote, described.Secondary, described.Claim = group, peer, true, nil
		rec, err = pool.Create(*described)
	}
	if err != nil {
		return err
	}
	if !secondary { // else copies.claim has made it free
		if err := ms.mayTake(rec); err != nil {
			return err
		}
	}
	if m.SizeBytes > rec.SizeBytes {
		if _, err := pool.Grow(m.VolumeID, m.SizeBytes); err != nil {
			return err
		}
	}
	_, err = pool.Update(m.VolumeID, func(r *blockdev.VolumeRecord) error {
		if r.Group != rec.Group && r.Group != group {
			return fmt.Errorf("%w: volume %s was put into group %s meanwhile, not into %s", ErrInUse, m.VolumeID, r.Group,
				group)
		}
		r.Group, r.Left = group, nil
		r.Secondary, r.Remote = ms.roleForPool()
		r.Joins = max(r.Joins, m.Joins)
		if secondary {
			if format != nil || m.Joins > rec.Joins {
				r.Format = format
			}
			if m.Order != "" {
				r.Order = blockdev.Order(m.Order)
			}
			if claim != nil {
				r.Claim = claim
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	m.Image, _, err = ms.imageIdentity(m.VolumeID)
	return err
}

// mayTake refuses a volume that another group has. One that is not open has it if the record says so: its journal may
// have writes that the image lacks. A volume whose group was deleted, or which is in none of those that are open, is
// free, whatever its record says.
func (ms *members) mayTake(rec *blockdev.VolumeRecord) error {
	if rec.Group == "" || rec.Group == ms.g.Name() {
		return nil
	}
	holder, err := ms.g.site.GroupOf(rec.ID)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil
	case err != nil:
		return err
	}
	return fmt.Errorf("%w: volume %s is in group %s; take it out there first (slipctl group remove %[3]s %[2]s)", ErrInUse,
		rec.ID, holder.Name())
}

// roleForPool is what the records of the group's volumes say of its role and peer. It must be called with the records
// locked: then the last writer writes the newest role, whatever changes the role meanwhile. So the pool's lock comes
// before mu.
func (ms *members) roleForPool() (secondary bool, peer string) {
	g := ms.g
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.core.Meta.Role == core.RoleSecondary, g.core.Meta.Peer
}

// alignPool makes the pool's records say which role the group's volumes have here, and which peer. The driver stages no
// secondary. It is called after each change of the role or the peer, without holding mu.
func (ms *members) alignPool() error {
	g := ms.g
	g.mu.Lock()
	members, name := slices.Clone(g.core.Meta.Members), g.core.Meta.Name
	g.mu.Unlock()
	for _, m := range members {
		if m.Removed() {
			continue
		}
		_, err := g.cfg.Pool.Update(m.VolumeID, func(r *blockdev.VolumeRecord) error {
			if r.Group == name { // else it has left meanwhile
				r.Secondary, r.Remote = ms.roleForPool()
				r.Unwanted = r.Unwanted && !g.writable.Load()
			}
			return nil
		})
		if errors.Is(err, blockdev.ErrNoVolume) && g.copies.removed(m.Index) {
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}
