package parameter

import (
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// ParamFreeze is a parameter of VolumeSnapshotClasses and VolumeGroupSnapshotClasses.
const KeyFreeze = Prefix + "freeze"

// SnapshotParameters is the registry of the keys of snapshot classes under ParameterPrefix.
var SnapshotSpecs = []Spec{
	{
		Key: KeyFreeze, Type: TypeBool, Default: "false",
		Doc: "Freeze the file systems of mounted volumes without a consistency group while their snapshots are taken, for " +
			"30 seconds at most. Writers wait during the freeze. If the pool's file system can share blocks between files " +
			"(xfs with reflink, btrfs), a snapshot takes an instant, and a freeze only adds unflushed writes to it. " +
			"Otherwise (ext4) a mounted volume is copied while it is frozen, and its snapshot needs the freeze. Volumes of a " +
			"consistency group ignore this parameter: their snapshots are cuts of the group's order.",
	},
}

// classDeletionPolicy is a field of snapshot classes that Kubernetes itself acts on. Kubernetes' storage tests put it
// among the parameters too. The driver accepts and ignores it.
const classDeletionPolicy = "deletionPolicy"

// Snapshot are the parameters of one snapshot or group snapshot.
type Snapshot struct {
	Freeze bool
}

// ParseSnapshot reads a snapshot class's parameters. Errors are status errors with InvalidArgument that name
// the key.
func ParseSnapshot(params map[string]string) (p Snapshot, err error) {
	own := make([]string, len(SnapshotSpecs))
	for i, spec := range SnapshotSpecs {
		own[i] = spec.Key
	}
	keys := make([]string, 0, len(params))
	for key := range params {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, key := range keys {
		switch {
		case key == KeyFreeze:
			if p.Freeze, err = parseBool(params[key]); err != nil {
				return p, status.Errorf(codes.InvalidArgument, "parameter %s: %v", key, err)
			}
		case key == classDeletionPolicy:
		case strings.HasPrefix(key, Prefix), !strings.Contains(key, "/"):
			nearest, _ := nearestKey(Prefix+strings.TrimPrefix(key, Prefix), own)
			return p, unknownKey(key, nearest)
		}
	}
	return p, nil
}
