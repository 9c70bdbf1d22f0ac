package core

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
)

// Role is what a group is at a site.
type Role string

const (
	// RolePrimary takes writes and ships them.
	RolePrimary Role = "primary"
	// RoleDemoted takes no more writes. It ships those that it has, up to Meta.FinalOrdinal, until the peer is promoted.
	RoleDemoted Role = "demoted"
	// RoleSecondary takes records from its peer.
	RoleSecondary Role = "secondary"
)

// turns are the roles that follow a role. A primary does not become a secondary at once: its peer would be promoted in
// its place while it still takes writes.
var turns = map[Role][]Role{
	RolePrimary:   {RoleDemoted},
	RoleDemoted:   {RolePrimary, RoleSecondary},
	RoleSecondary: {RolePrimary},
}

func (r Role) String() string { return string(r) }

// Ships reports whether this site calls its peer and ships to it. A demoted site still does.
func (r Role) Ships() bool { return r == RolePrimary || r == RoleDemoted }

// Side is RolePrimary or RoleSecondary: which end of the stream the site is. That is what people are shown as the role;
// a demotion is shown as a state.
func (r Role) Side() Role {
	if r.Ships() {
		return RolePrimary
	}
	return r
}

// become changes the role. It panics if that role cannot follow: a programming error, since Step refuses such requests.
func (m *Meta) become(next Role) {
	if !slices.Contains(turns[m.Role], next) {
		panic(fmt.Sprintf("core: group %s is %s at %s and cannot become %s", m.Name, m.Role, m.Site, next))
	}
	m.Role = next
	m.endShardRole()
}

// revert makes a primary the secondary that it was before a promotion that no other site has heard of.
func (m *Meta) revert() { m.Role = RoleSecondary }

// plainMeta is a Meta without its methods.
type plainMeta Meta

// metaKeys are the keys that stand for the role and the state of the copy, as all releases have written them.
type metaKeys struct {
	plainMeta
	Consistent bool `json:"consistent"`
	AwaitsSync bool `json:"awaitsSync,omitempty"`
	Role       Role `json:"role"`
	Demoted    bool `json:"demoted,omitempty"`
}

// copyState is what the keys say. That a copy rolls back is said by its base.
func (k *metaKeys) copyState() CopyState {
	switch {
	case k.Base != nil && k.Base.RollBack != nil:
		return CopyRollingBack
	case k.Consistent:
		return CopyWhole
	case k.AwaitsSync:
		return CopyAwaiting
	}
	return CopyPartial
}

// MarshalJSON implements json.Marshaler.
func (m Meta) MarshalJSON() ([]byte, error) {
	return json.Marshal(metaKeys{
		plainMeta: plainMeta(m), Role: m.Role.Side(), Demoted: m.Role == RoleDemoted,
		Consistent: m.Copy == CopyWhole, AwaitsSync: m.Copy == CopyAwaiting,
	})
}

// UnmarshalJSON implements json.Unmarshaler. An unknown key is an error: it would be lost when the file is written
// again.
func (m *Meta) UnmarshalJSON(data []byte) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	var k metaKeys
	if err := dec.Decode(&k); err != nil {
		return err
	}
	*m = Meta(k.plainMeta)
	m.Role, m.Copy = k.Role, k.copyState()
	if k.Demoted && k.Role == RolePrimary {
		m.Role = RoleDemoted
	}
	return nil
}
