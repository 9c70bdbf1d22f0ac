package plugin

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
)

// GroupPart is what a node is told that has a part of the volumes of a group snapshot over several nodes. The zero
// value asks for the part that is there already.
type GroupPart struct {
	// ID is that of the group snapshot, Epoch the one that its volumes are kept at.
	ID, Epoch string
}

const (
	// GroupSnapshotPrefix makes a group snapshot's id recognisable in logs.
	GroupSnapshotPrefix = "gsnap-"
	// partsInfix is before the number of snapshots of a group snapshot over several nodes, in its id. Each node has a part
	// of them, and so nothing else says when all are there.
	partsInfix = "-of-"
	existing   = "existing"
)

// String is the value of GroupPartMetadata.
func (p GroupPart) String() string {
	if p == (GroupPart{}) {
		return existing
	}
	return p.ID + "@" + p.Epoch
}

// ParseGroupPart reads a value of GroupPartMetadata.
func ParseGroupPart(text string) (p GroupPart, err error) {
	if text == existing {
		return p, nil
	}
	id, at, ok := strings.Cut(text, "@")
	if !ok || at == "" || GroupSnapshotSize(id) == 0 {
		return p, fmt.Errorf("%s %q: want the id of a group snapshot over several nodes, @ and an epoch", GroupPartMetadata,
			text)
	}
	return GroupPart{ID: id, Epoch: at}, nil
}

// NewGroupSnapshotID makes the id of a group snapshot over several nodes with a number of snapshots.
func NewGroupSnapshotID(snapshots int) string {
	random := make([]byte, 16)
	_, _ = rand.Read(random) // it never fails
	return GroupSnapshotPrefix + hex.EncodeToString(random) + partsInfix + strconv.Itoa(snapshots)
}

// GroupSnapshotSize is the number of snapshots of a group snapshot over several nodes, by its id; 0 for another one.
func GroupSnapshotSize(id string) int {
	i := strings.LastIndex(id, partsInfix)
	if i < 0 || !strings.HasPrefix(id, GroupSnapshotPrefix) {
		return 0
	}
	n, err := strconv.Atoi(id[i+len(partsInfix):])
	if err != nil || n < 1 {
		return 0
	}
	return n
}
