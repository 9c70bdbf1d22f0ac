package core

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// MemberState is what a site has still to do about a member.
//
//	             Add            Join            Settle
//	(no member) -----> adding -------> joining --------> present <-----> unannounced
//	                     |                                  ^      Change, Settle
//	                     +----------- Settle ---------------+
//
//	any of these --Leave--> leaving --Settle--> removed        any --Drop--> removed
//
// Nothing leads back from leaving and removed: a volume that comes back gets another index.
type MemberState uint8

const (
	// MemberPresent: the peer hears of the member, and of its content, in order. Nothing is left to do.
	MemberPresent MemberState = iota
	// MemberAdding: the content may not be in the change map yet, and the peer has not heard of the volume.
	MemberAdding
	// MemberJoining: the peer hears of the volume, and the volume is in use and may still be written past the group. No
	// sync ends in this state: those writes are in nothing that the peer gets. After a restart the volume is served
	// through the group, and the state is MemberAdding.
	MemberJoining
	// MemberUnannounced: the description was changed, and the journal may not say so yet.
	MemberUnannounced
	// MemberLeaving: the volume was removed, and the journal may not say so yet.
	MemberLeaving
	// MemberRemoved: the volume was removed. The index stays taken.
	MemberRemoved
)

func (s MemberState) String() string {
	return [...]string{"present", "adding", "joining", "unannounced", "leaving", "removed"}[s]
}

// Removed reports whether the volume is not in the group any more.
func (s MemberState) Removed() bool { return s == MemberLeaving || s == MemberRemoved }

// Adding reports whether content of the volume may be in neither the journal nor the change map.
func (s MemberState) Adding() bool { return s == MemberAdding || s == MemberJoining }

// Settled reports whether nothing is left to do about the member.
func (s MemberState) Settled() bool { return s == MemberPresent || s == MemberRemoved }

// Member is a volume of a group. Index is its number in records; it is never given to another volume.
type Member struct {
	Index          uint32          `json:"index"`
	VolumeID       string          `json:"volumeID"`
	Name           string          `json:"name,omitempty"`
	SizeBytes      int64           `json:"sizeBytes"`
	BlockSizeBytes int64           `json:"blockSizeBytes,omitempty"`
	Thick          bool            `json:"thick,omitempty"`
	Order          string          `json:"order,omitempty"`
	FSType         string          `json:"fsType,omitempty"`
	Format         json.RawMessage `json:"format,omitempty"`
	Claim          json.RawMessage `json:"claim,omitempty"`
	// State is written as the keys of memberKeys.
	State MemberState `json:"-"`
	// Joins is how many groups the volume had been put into, this one included. A copy belongs to the highest that was
	// heard of, in whatever order the streams of several groups arrive.
	Joins uint64 `json:"joins,omitempty"`
	// Image is the identity of the image file at this site; empty where it is not known. The peer does not get it.
	Image string `json:"image,omitempty"`
}

// Removed reports whether the volume is not in the group any more.
func (m *Member) Removed() bool { return m.State.Removed() }

func (m *Member) refuse(what string) error {
	return fmt.Errorf("%w: volume %s is %s as member %d, so it cannot be %s", ErrPrecondition, m.VolumeID, m.State,
		m.Index, what)
}

// Add begins the addition of the member, or begins it again. One that is joining stays so.
func (m *Member) Add() error {
	if m.Removed() {
		return m.refuse("added")
	}
	if m.State != MemberJoining {
		m.State = MemberAdding
	}
	return nil
}

// Join is called for a volume in use before the peer hears of it.
func (m *Member) Join() error {
	if !m.State.Adding() {
		return m.refuse("joined")
	}
	m.State = MemberJoining
	return nil
}

// Change is called when the description was changed. A member that is being added stays so: its addition tells the
// peer.
func (m *Member) Change() error {
	switch {
	case m.Removed():
		return m.refuse("changed")
	case !m.State.Adding():
		m.State = MemberUnannounced
	}
	return nil
}

// Leave takes the volume out of the group; the journal has to say so.
func (m *Member) Leave() error {
	if m.State == MemberRemoved {
		return m.refuse("removed again")
	}
	m.State = MemberLeaving
	return nil
}

// Drop takes the volume out of the group because its primary did.
func (m *Member) Drop() { m.State = MemberRemoved }

// Settle is called when the journal says what the description says, and the change map or the journal has all content.
func (m *Member) Settle() {
	if m.Removed() {
		m.State = MemberRemoved
	} else {
		m.State = MemberPresent
	}
}

// Described returns the member as the peer is told of it: settled, and without what concerns this site alone.
func (m Member) Described() Member {
	m.Settle()
	m.Image = ""
	return m
}

// plainMember is a Member without its methods.
type plainMember Member

// memberKeys are the keys that stand for the state, as all releases have written it.
type memberKeys struct {
	plainMember
	Removed     bool `json:"removed,omitempty"`
	Unsynced    bool `json:"unsynced,omitempty"`
	Unannounced bool `json:"unannounced,omitempty"`
}

func (k *memberKeys) member() Member {
	m := Member(k.plainMember)
	switch {
	case k.Removed && k.Unannounced:
		m.State = MemberLeaving
	case k.Removed:
		m.State = MemberRemoved
	case k.Unsynced: // also when it is unannounced: the addition announces it
		m.State = MemberAdding
	case k.Unannounced:
		m.State = MemberUnannounced
	}
	return m
}

// MarshalJSON implements json.Marshaler.
func (m Member) MarshalJSON() ([]byte, error) {
	return json.Marshal(memberKeys{
		plainMember: plainMember(m), Removed: m.State.Removed(), Unsynced: m.State.Adding(),
		Unannounced: m.State == MemberUnannounced || m.State == MemberLeaving,
	})
}

// UnmarshalJSON implements json.Unmarshaler. It ignores unknown keys: a peer may be of a later release.
func (m *Member) UnmarshalJSON(data []byte) error {
	var k memberKeys
	err := json.Unmarshal(data, &k)
	*m = k.member()
	return err
}

// MemberList is the list of members in a group.json, in which an unknown key is an error.
type MemberList []Member

// UnmarshalJSON implements json.Unmarshaler.
func (list *MemberList) UnmarshalJSON(data []byte) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	var keys []memberKeys
	if err := dec.Decode(&keys); err != nil {
		return err
	}
	*list = nil
	for i := range keys {
		*list = append(*list, keys[i].member())
	}
	return nil
}
