package parameter

import (
	"maps"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Mutation is what a VolumeAttributesClass asks for. What is not given stays as it is.
type Mutation struct {
	Volume
	Given map[string]string
}

func (m *Mutation) Has(keys ...string) bool {
	return slices.ContainsFunc(keys, func(key string) bool { _, ok := m.Given[key]; return ok })
}

// GroupKeys are the mutable parameters that are of a volume's group, so of all its volumes.
var GroupKeys = []string{KeyRemote, KeyJournalSize, KeyJournalFull, KeyRPOTarget, KeyHistory, KeyReplicationRate,
	KeyRateSchedule, KeyKeepTails, KeyKeepTailsFor}

// ParseMutation reads mutable parameters. Errors are InvalidArgument and name the key, and what can be changed. Unlike
// in a StorageClass no key is passed over: the CO is told of what was not done.
func ParseMutation(params map[string]string) (Mutation, error) {
	m := Mutation{Given: params}
	for _, key := range slices.Sorted(maps.Keys(params)) {
		i := slices.IndexFunc(Specs, func(s Spec) bool { return s.Key == key })
		switch {
		case i < 0:
			return m, status.Errorf(codes.InvalidArgument, "unknown mutable parameter %q; what can be changed: %s", key,
				strings.Join(mutableKeys(), ", "))
		case !Specs[i].Mutable:
			return m, status.Errorf(codes.InvalidArgument, "parameter %s is fixed when a volume is created; what can be "+
				"changed: %s", key, strings.Join(mutableKeys(), ", "))
		}
		if err := m.applyOwn(key, params[key]); err != nil {
			return m, err
		}
	}
	if m.groupTemplate != "" {
		return m, status.Errorf(codes.InvalidArgument, "parameter %s: %q is expanded for a new volume only, from its "+
			"StorageClass; name the group itself",
			KeyConsistencyGroup, m.groupTemplate)
	}
	if m.Has(KeySharedGroup) && m.Group == "" {
		return m, errSharedWithout
	}
	if m.Replication == ReplicationOff {
		for _, key := range append([]string{KeyConsistencyGroup}, GroupKeys...) {
			if m.Has(key) {
				return m, status.Errorf(codes.InvalidArgument, "parameter %s is %s, so there is no group that %s could be of: "+
					"remove one of the two",
					KeyReplication, ReplicationOff, key)
			}
		}
	}
	return m, nil
}

func mutableKeys() (keys []string) {
	for _, spec := range Specs {
		if spec.Mutable {
			keys = append(keys, spec.Key)
		}
	}
	return keys
}

// Overlay returns the parameters of a StorageClass with mutable ones over them.
func Overlay(own, mutable map[string]string) map[string]string {
	merged := map[string]string{}
	maps.Copy(merged, own)
	if mutable[KeyReplication] == ReplicationOff {
		for _, key := range append([]string{KeyConsistencyGroup}, GroupKeys...) {
			if _, ok := merged[key]; ok {
				merged[KeyReplicable] = "true" // as those had implied
				delete(merged, key)
			}
		}
		delete(merged, KeySharedGroup)
	}
	if _, ok := mutable[KeyConsistencyGroup]; ok {
		delete(merged, KeySharedGroup) // it is of the group that the StorageClass names
	}
	maps.Copy(merged, mutable)
	return merged
}
