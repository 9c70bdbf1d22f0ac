package parameter

import (
	"maps"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
)

// modifiedKey, in a volume's parameters, notes that its mutable parameters were changed since it was made: a repeated
// CreateVolume then leaves it as it is.
const NoteModified = "driver.internal/modified"

// leftGroupKey, in a volume's parameters, names the group that the volume was in when its replication was last switched
// off.
const NoteLeftGroup = "driver.internal/left-group"

// CreationOf are the parameters that a volume was made with, in as far as they say how it is replicated once it is.
func CreationOf(rec *blockdev.VolumeRecord) map[string]string {
	if rec.MutableParameters[KeyReplication] == ReplicationOff {
		return OwnRecorded(rec)
	}
	return Overlay(OwnRecorded(rec), rec.MutableParameters)
}

// createdGroupKey, in a volume's parameters, names the groups that this driver created for the volume, or for another
// one that carries the same note, separated by commas: more than one while the volume is on its way from one to the
// next. A group that a person made stays when its last volume goes; one that a class made goes with it. The key is not
// under ParameterPrefix, where it could be mistaken for a parameter.
const createdGroupKey = "driver.internal/created-group"

func CreatedGroups(rec *blockdev.VolumeRecord) []string {
	return strings.FieldsFunc(rec.Parameters[createdGroupKey], func(r rune) bool { return r == ',' })
}

// NoteCreatedGroup adds a group to the note; an empty name adds nothing.
func NoteCreatedGroup(rec *blockdev.VolumeRecord, name string) {
	if name == "" || slices.Contains(CreatedGroups(rec), name) {
		return
	}
	if rec.Parameters == nil {
		rec.Parameters = map[string]string{}
	}
	rec.Parameters[createdGroupKey] = strings.Join(append(CreatedGroups(rec), name), ",")
}

func ForgetCreatedGroup(rec *blockdev.VolumeRecord, name string) {
	left := slices.DeleteFunc(CreatedGroups(rec), func(g string) bool { return g == name })
	if len(left) == 0 {
		delete(rec.Parameters, createdGroupKey)
	} else {
		rec.Parameters[createdGroupKey] = strings.Join(left, ",")
	}
}

// MadeWith returns the parameters that a volume was made with, of its class and the mutable ones over them.
func MadeWith(rec *blockdev.VolumeRecord) (Volume, error) {
	return ParseRecorded(rec, Overlay(OwnRecorded(rec), rec.MutableParameters))
}

// ParseRecorded parses parameters that a volume's record has. What cannot be read there is not caller input, so
// Internal.
func ParseRecorded(rec *blockdev.VolumeRecord, parameters map[string]string) (Volume, error) {
	p, err := Parse(parameters)
	if err != nil {
		err = status.Errorf(codes.Internal, "volume %s: parameters in its record: %s", rec.ID, status.Convert(err).Message())
	}
	return p, err
}

// Joining returns the parameters by which a volume's creation puts it into a group, and that group's name: empty where
// it is to be in none, is in one, or was modified since.
func Joining(rec *blockdev.VolumeRecord) (Volume, string, error) {
	if rec.Group != "" || rec.Secondary || !rec.Replicable || rec.Parameters[NoteModified] != "" {
		return Volume{}, "", nil
	}
	p, err := MadeWith(rec)
	return p, p.GroupName(rec.ID), err
}

// Settings is what two sets of parameters have to agree in to mean the same volume, however they were written.
func (p Volume) Settings() Volume {
	p.FSType, p.replicableGiven, p.orderGiven = "", false, false
	if p.JournalFull == "" {
		p.JournalFull = JournalFullTrack
	}
	if p.JournalSizeBytes == 0 {
		p.JournalSizeBytes = core.DefaultJournalBytes
	}
	return p
}

// OwnRecorded returns the StorageClass parameters a volume was made with, without the driver's own notes.
func OwnRecorded(rec *blockdev.VolumeRecord) map[string]string {
	return Own(rec.Parameters)
}

// Own returns the parameters under ParameterPrefix.
func Own(params map[string]string) map[string]string {
	own := maps.Clone(params)
	maps.DeleteFunc(own, func(key, _ string) bool { return !strings.HasPrefix(key, Prefix) })
	return own
}

// Journal is the group that a volume is on its way into, empty for none, and the most that the group's journal will
// take if the group has still to be made.
type Journal struct {
	Group string
	Bytes int64
}

// JournalWanted returns the journal of the group that a volume's creation puts it in.
func JournalWanted(rec *blockdev.VolumeRecord) Journal {
	p, group, err := Joining(rec)
	if err != nil || group == "" {
		return Journal{} // of another version; the group it is in says it
	}
	return p.JournalOf(rec.ID)
}

// JournalOf returns the journal of the group that the parameters put a volume in.
func (p Volume) JournalOf(volumeID string) Journal {
	group := p.GroupName(volumeID)
	if group == "" {
		return Journal{}
	}
	return Journal{Group: group, Bytes: p.JournalLimitBytes()}
}
