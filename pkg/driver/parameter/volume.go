package parameter

import (
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// knownKubernetesKeys are accepted. Names of claims and volumes are noted (see claimOf) and decide nothing.
var knownKubernetesKeys = []string{
	KeyFSType,
	KeyClaimName,
	KeyClaimNamespace,
	KeyVolumeName,
}

// Volume are the parameters of one volume, with defaults filled in.
type Volume struct {
	// FSType is empty unless the CO passed csi.storage.k8s.io/fstype.
	FSType        string
	Replicable    bool
	Group         string
	groupTemplate string // in place of Group in a class; a creation's is expanded before (expandParameters)
	// SharedGroup: the group may have volumes of several namespaces.
	SharedGroup      bool
	Remote           string
	Order            string
	JournalSizeBytes int64 // 0: the replicator's default
	JournalFull      string
	RPOTargetMillis  int64
	HistoryMillis    int64
	// ShipBytesPerSecond: 0 for no bound.
	ShipBytesPerSecond int64
	// ShipSchedule has the form of package schedule; empty for none.
	ShipSchedule string
	// TailsMost and TailsMillis: 0 for no bound.
	TailsMost        uint32
	TailsMillis      int64
	IOBytesPerSecond int64 // 0 for no bound, as IOPS
	IOPS             int64
	Replication      string
	Thick            bool

	replicableGiven bool
	orderGiven      bool
}

// Parse reads a StorageClass's parameters. Errors are status errors with InvalidArgument that name the key.
func Parse(params map[string]string) (Volume, error) {
	p := Volume{Order: OrderAck}
	keys := make([]string, 0, len(params))
	for key := range params {
		keys = append(keys, key)
	}
	// Sorted, so that of several mistakes always the same one is reported.
	slices.Sort(keys)
	for _, key := range keys {
		if err := p.apply(key, params[key]); err != nil {
			return Volume{}, err
		}
	}
	return p, p.validate()
}

func (p *Volume) apply(key, value string) error {
	switch {
	case strings.HasPrefix(key, Prefix):
		return p.applyOwn(key, value)
	case key == KeyFSType:
		p.FSType = value
		return nil
	case strings.HasPrefix(key, kubernetesPrefix):
		// A later provisioner may send keys that are not known here, so only what looks like a misspelling is refused.
		if nearest, distance := nearestKey(key, knownKubernetesKeys); distance > 0 && distance <= 2 {
			return unknownKey(key, nearest)
		}
		return nil
	case !strings.Contains(key, "/"):
		// A key without a domain can only be meant for this driver; ignoring it would create another volume than asked for.
		nearest, _ := nearestKey(Prefix+key, ownKeys())
		return unknownKey(key, nearest)
	default:
		return nil
	}
}

func (p *Volume) applyOwn(key, value string) error {
	i := slices.IndexFunc(Specs, func(s Spec) bool { return s.Key == key })
	if i < 0 {
		nearest, _ := nearestKey(key, ownKeys())
		return unknownKey(key, nearest)
	}
	spec := Specs[i]
	if spec.Type == TypeEnum && !slices.Contains(spec.Values, value) {
		return status.Errorf(codes.InvalidArgument, "parameter %s: %q is not one of %s", key, value,
			strings.Join(spec.Values, ", "))
	}
	if err := spec.set(p, value); err != nil {
		return status.Errorf(codes.InvalidArgument, "parameter %s: %v", key, err)
	}
	return nil
}

// errSharedWithout: the parameter is of the group that the same class names.
var errSharedWithout = status.Errorf(codes.InvalidArgument, "parameter %s says who may be in the group that the same "+
	"class names: add %s or remove it", KeySharedGroup, KeyConsistencyGroup)

// validate checks what several keys say together.
func (p *Volume) validate() error {
	inGroup := ""
	switch {
	case p.Group != "" || p.groupTemplate != "":
		inGroup = KeyConsistencyGroup
	case p.Remote != "":
		inGroup = KeyRemote
	}
	switch {
	case p.SharedGroup && inGroup != KeyConsistencyGroup:
		return errSharedWithout
	case p.Replication == ReplicationOff && inGroup != "":
		return status.Errorf(codes.InvalidArgument, "parameter %s is %s, but %s asks for it: remove one of the two",
			KeyReplication, p.Replication, inGroup)
	case p.Replication == ReplicationOn && inGroup == "":
		return status.Errorf(codes.InvalidArgument, "parameter %s is %s, but nothing says where: add %s or %s",
			KeyReplication, p.Replication, KeyConsistencyGroup, KeyRemote)
	}
	if inGroup != "" {
		if p.replicableGiven && !p.Replicable {
			return status.Errorf(codes.InvalidArgument,
				"parameter %s needs a replicable volume, but %s is false: remove one of the two", inGroup, KeyReplicable)
		}
		p.Replicable = true
	}
	if p.orderGiven && !p.Replicable {
		return status.Errorf(codes.InvalidArgument,
			"parameter %s has a meaning for replicable volumes only: add %s: \"true\" or remove it", KeyOrder, KeyReplicable)
	}
	if p.IOBytesPerSecond != 0 || p.IOPS != 0 {
		key := KeyIOBytes
		if p.IOBytesPerSecond == 0 {
			key = KeyIOPS
		}
		if !p.Replicable {
			return status.Errorf(codes.InvalidArgument, "parameter %s is for replicable volumes only, since the I/O of "+
				"others goes by the kernel's loop driver alone: "+
				"add %s: \"true\", or remove it and limit the pods (io.max of their cgroups)", key, KeyReplicable)
		}
	}
	groupKey := ""
	switch {
	case p.JournalSizeBytes != 0:
		groupKey = KeyJournalSize
	case p.JournalFull != "":
		groupKey = KeyJournalFull
	case p.RPOTargetMillis != 0:
		groupKey = KeyRPOTarget
	case p.HistoryMillis != 0:
		groupKey = KeyHistory
	case p.ShipBytesPerSecond != 0:
		groupKey = KeyReplicationRate
	case p.ShipSchedule != "":
		groupKey = KeyRateSchedule
	case p.TailsMost != 0:
		groupKey = KeyKeepTails
	case p.TailsMillis != 0:
		groupKey = KeyKeepTailsFor
	}
	if groupKey != "" && inGroup == "" {
		return status.Errorf(codes.InvalidArgument,
			"parameter %s describes a group: add %s or %s, or remove it", groupKey, KeyConsistencyGroup, KeyRemote)
	}
	return nil
}
