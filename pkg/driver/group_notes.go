package driver

import (
	"slices"
	"strings"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
)

// createdGroupKey, in a volume's parameters, names the groups that this driver created for the volume, or for another one that
// carries the same note, separated by commas: more than one while the volume is on its way from one to the next. A group that
// a person made stays when its last volume goes; one that a class made goes with it. The key is not under ParameterPrefix,
// where it could be mistaken for a parameter.
const createdGroupKey = "driver.internal/created-group"

func createdGroups(rec *blockdev.VolumeRecord) []string {
	return strings.FieldsFunc(rec.Parameters[createdGroupKey], func(r rune) bool { return r == ',' })
}

// noteCreatedGroup adds a group to the note; an empty name adds nothing.
func noteCreatedGroup(rec *blockdev.VolumeRecord, name string) {
	if name == "" || slices.Contains(createdGroups(rec), name) {
		return
	}
	if rec.Parameters == nil {
		rec.Parameters = map[string]string{}
	}
	rec.Parameters[createdGroupKey] = strings.Join(append(createdGroups(rec), name), ",")
}

func forgetCreatedGroup(rec *blockdev.VolumeRecord, name string) {
	left := slices.DeleteFunc(createdGroups(rec), func(g string) bool { return g == name })
	if len(left) == 0 {
		delete(rec.Parameters, createdGroupKey)
	} else {
		rec.Parameters[createdGroupKey] = strings.Join(left, ",")
	}
}
