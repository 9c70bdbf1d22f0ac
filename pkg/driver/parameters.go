package driver

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// ParameterPrefix is the domain of the driver's own StorageClass parameters.
const ParameterPrefix = "slipstream.dev/"

// kubernetesPrefix is reserved by Kubernetes. The provisioner strips what it consumes itself (fstype, secrets) and adds
// the names of the claim and the volume; a CO that is not Kubernetes may pass fstype on.
const kubernetesPrefix = "csi.storage.k8s.io/"

// Keys of the driver's StorageClass parameters. A key's meaning never changes; a new meaning gets a new key.
const (
	ParamReplicable       = ParameterPrefix + "replicable"
	ParamConsistencyGroup = ParameterPrefix + "consistency-group"
	ParamRemote           = ParameterPrefix + "remote"
	ParamOrder            = ParameterPrefix + "order"
	ParamJournalSize      = ParameterPrefix + "journal-size"
	ParamJournalFull      = ParameterPrefix + "journal-full"
	ParamProvisioning     = ParameterPrefix + "provisioning"
	ParamReplication      = ParameterPrefix + "replication"
	ParamRPOTarget        = ParameterPrefix + "rpo-target"
	ParamReplicationRate  = ParameterPrefix + "replication-rate"
	ParamIOBytes          = ParameterPrefix + "io-bytes-per-second"
	ParamIOPS             = ParameterPrefix + "iops"

	paramFSType = kubernetesPrefix + "fstype"
)

// Values of enumerated parameters.
const (
	OrderFlush = "flush"
	OrderAck   = "ack"

	JournalFullTrack = "track"
	JournalFullStall = "stall"

	ProvisioningThin  = "thin"
	ProvisioningThick = "thick"

	ReplicationOn  = "on"
	ReplicationOff = "off"
)

// ParameterType says how a parameter's value is written.
type ParameterType string

const (
	TypeBool     ParameterType = "true | false"
	TypeName     ParameterType = "name"
	TypeEnum     ParameterType = "one of"
	TypeQuantity ParameterType = "quantity"
	TypeDuration ParameterType = "duration"
	TypeNumber   ParameterType = "number"
)

// ParameterSpec describes one StorageClass parameter. The documentation of parameters is generated from Parameters.
type ParameterSpec struct {
	Key  string
	Type ParameterType
	// Values are the legal values of a TypeEnum; the first is not necessarily the default.
	Values []string
	// Default is what an absent key means, in the value's own notation; empty where absence means "none".
	Default string
	// Mutable: a VolumeAttributesClass may have it, and change it for a volume in use.
	Mutable bool
	Doc     string

	set func(p *volumeParameters, value string) error
}

// Parameters is the registry of the keys under ParameterPrefix, in the order in which documentation lists them.
var Parameters = []ParameterSpec{
	{
		Key: ParamReplicable, Type: TypeBool, Default: "false",
		Doc: "Attach the volume through the shim, so that replication can be switched on and off while it is mounted. " +
			"Needs the replicator beside the driver. Implied by " + ParamConsistencyGroup + " and " + ParamRemote + ".",
		set: func(p *volumeParameters, v string) (err error) {
			p.replicableGiven = true
			p.Replicable, err = parseBool(v)
			return err
		},
	},
	{
		Key: ParamConsistencyGroup, Type: TypeName, Mutable: true,
		Doc: "Name of the consistency group that the volume joins. The first volume creates the group. Changed, the volume moves into the other group, " +
			"and its copy there begins anew. When a volume is created, `${pvc.namespace}`, `${pvc.name}` and `${pv.name}` in it stand for the claim's, with a " +
			"provisioner that runs with `--extra-create-metadata`: `${pvc.namespace}` is one group for each namespace.",
		set: func(p *volumeParameters, v string) (err error) {
			if isGroupTemplate(v) {
				p.groupTemplate = v
				return checkGroupTemplate(v)
			}
			p.Group, err = parseName(v)
			return err
		},
	},
	{
		Key: ParamRemote, Type: TypeName, Mutable: true,
		Doc: "Name of the site that the volume's group replicates to. Without " + ParamConsistencyGroup +
			" the volume gets a group of its own, named after its id. Changed, the group's volumes are copied to the other site from nothing; " +
			"the copy at the old one stays there as it was.",
		set: func(p *volumeParameters, v string) (err error) {
			p.Remote, err = parseName(v)
			return err
		},
	},
	{
		Key: ParamOrder, Type: TypeEnum, Values: []string{OrderFlush, OrderAck}, Default: OrderFlush, Mutable: true,
		Doc: "What the secondary keeps in order. flush: writes, as far as completed flushes order them, at nearly no cost. " +
			"ack: every acknowledged write, at the price of slower writes. It can be changed while the volume is not staged.",
		set: func(p *volumeParameters, v string) error {
			p.orderGiven, p.Order = true, v
			return nil
		},
	},
	{
		Key: ParamJournalSize, Type: TypeQuantity, Default: "1Gi", Mutable: true,
		Doc: "Size of the group's journal, at least 16Mi. All volumes of a group must ask for the same size.",
		set: func(p *volumeParameters, v string) error {
			n, err := parseQuantity(v)
			if err == nil && n < minJournalSizeBytes {
				err = fmt.Errorf("%q is less than the minimum of 16Mi", v)
			}
			p.JournalSizeBytes = n
			return err
		},
	},
	{
		Key: ParamJournalFull, Type: TypeEnum, Values: []string{JournalFullTrack, JournalFullStall}, Default: JournalFullTrack, Mutable: true,
		Doc: "What happens when the journal is full of records that the peer has not acknowledged. track: the oldest are " +
			"folded into the change map and writes go on. stall: writes wait.",
		set: func(p *volumeParameters, v string) error {
			p.JournalFull = v
			return nil
		},
	},
	{
		Key: ParamRPOTarget, Type: TypeDuration, Default: "0", Mutable: true,
		Doc: "How far the copy of the group may lag before its status, metrics and health say so; 0 for no target.",
		set: func(p *volumeParameters, v string) (err error) {
			p.RPOTargetMillis, err = parseMillis(v)
			return err
		},
	},
	{
		Key: ParamReplicationRate, Type: TypeQuantity, Default: "0", Mutable: true,
		Doc: "Most bytes a second that are sent of the group to its remote, syncs included, after compression, at least 64Ki; 0 for no bound. " +
			"Writers do not notice it; the lag does.",
		set: func(p *volumeParameters, v string) (err error) {
			if v != "0" {
				p.ShipBytesPerSecond, err = parseQuantity(v)
			}
			if err == nil && v != "0" && p.ShipBytesPerSecond < minShipBytesPerSecond {
				err = fmt.Errorf("%q is less than the minimum of 64Ki", v)
			}
			return err
		},
	},
	{
		Key: ParamReplication, Type: TypeEnum, Values: []string{ReplicationOn, ReplicationOff}, Mutable: true,
		Doc: "off: the volume leaves its group and is served from its image alone; its copy stays at the remote as it was then. on: it joins the " +
			"group that the other parameters name, or else the one that it was last in, as long as that exists, or else the one that it was made for. Implied by " + ParamConsistencyGroup + " and " + ParamRemote + ".",
		set: func(p *volumeParameters, v string) error {
			p.Replication = v
			return nil
		},
	},
	{
		Key: ParamIOBytes, Type: TypeQuantity, Default: "0", Mutable: true,
		Doc: "Most bytes a second that the volume reads and writes together, at least 1Mi; 0 for no bound. For replicable volumes. What is over it waits: " +
			"writes from the page cache as well, so an fsync, and the unmounting of a volume with much that is not written yet, take as long as that takes. " +
			"An idle volume saves up a tenth of a second's worth. The copy at the other site has no limits, and gets none when it is promoted. " +
			"The replicator's metrics have the limits of attached volumes, and count what had to wait (slipstream_volume_delayed_operations_total).",
		set: func(p *volumeParameters, v string) (err error) {
			if v != "0" {
				p.IOBytesPerSecond, err = parseQuantity(v)
			}
			if err == nil && v != "0" && p.IOBytesPerSecond < minIOBytesPerSecond {
				err = fmt.Errorf("%q is less than the minimum of 1Mi", v)
			}
			return err
		},
	},
	{
		Key: ParamIOPS, Type: TypeNumber, Default: "0", Mutable: true,
		Doc: "Most reads and writes a second of the volume together, at least 10; 0 for no bound. Counted are requests as they reach the volume, after the page cache " +
			"has merged them; flushes and discards are not. Otherwise as " + ParamIOBytes + ".",
		set: func(p *volumeParameters, v string) (err error) {
			p.IOPS, err = strconv.ParseInt(v, 10, 64)
			if err != nil || p.IOPS < 0 || (p.IOPS > 0 && p.IOPS < minIOPS) {
				return fmt.Errorf("%q is neither 0 nor a number of at least %d", v, minIOPS)
			}
			return nil
		},
	},
	{
		Key: ParamProvisioning, Type: TypeEnum, Values: []string{ProvisioningThin, ProvisioningThick}, Default: ProvisioningThin,
		Doc: "thin: the image takes space as it is written. thick: the image's space is reserved when it is created.",
		set: func(p *volumeParameters, v string) error {
			p.Thick = v == ProvisioningThick
			return nil
		},
	},
}

// knownKubernetesKeys are accepted. Names of claims and volumes are noted (see claimOf) and decide nothing.
var knownKubernetesKeys = []string{
	paramFSType,
	paramClaimName,
	paramClaimNamespace,
	paramVolumeName,
}

// minJournalSizeBytes keeps room for a few segments; below it every write would wait for a trim.
const minJournalSizeBytes = 16 << 20

// minIOBytesPerSecond and minIOPS keep what is in flight at a time, dozens of requests of up to a MiB, from waiting so long that the kernel takes
// the device for hung.
const (
	minIOBytesPerSecond = 1 << 20
	minIOPS             = 10
)

// minShipBytesPerSecond is the replicator's.
const minShipBytesPerSecond = 64 << 10

// defaultJournalSizeBytes is the replicator's default; see CreateGroupRequest.
const defaultJournalSizeBytes = 1 << 30

// volumeParameters are the parameters of one volume, with defaults filled in.
type volumeParameters struct {
	// FSType is empty unless the CO passed csi.storage.k8s.io/fstype.
	FSType           string
	Replicable       bool
	Group            string
	groupTemplate    string // in place of Group in a class; a creation's is expanded before (expandParameters)
	Remote           string
	Order            string
	JournalSizeBytes int64 // 0: the replicator's default
	JournalFull      string
	RPOTargetMillis  int64
	// ShipBytesPerSecond: 0 for no bound.
	ShipBytesPerSecond int64
	IOBytesPerSecond   int64 // 0 for no bound, as IOPS
	IOPS               int64
	Replication        string
	Thick              bool

	replicableGiven bool
	orderGiven      bool
}

// parseParameters reads a StorageClass's parameters. Errors are status errors with InvalidArgument that name the key.
func parseParameters(params map[string]string) (volumeParameters, error) {
	p := volumeParameters{Order: OrderFlush}
	keys := make([]string, 0, len(params))
	for key := range params {
		keys = append(keys, key)
	}
	// Sorted, so that of several mistakes always the same one is reported.
	slices.Sort(keys)
	for _, key := range keys {
		if err := p.apply(key, params[key]); err != nil {
			return volumeParameters{}, err
		}
	}
	return p, p.validate()
}

func (p *volumeParameters) apply(key, value string) error {
	switch {
	case strings.HasPrefix(key, ParameterPrefix):
		return p.applyOwn(key, value)
	case key == paramFSType:
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
		nearest, _ := nearestKey(ParameterPrefix+key, ownKeys())
		return unknownKey(key, nearest)
	default:
		return nil
	}
}

func (p *volumeParameters) applyOwn(key, value string) error {
	i := slices.IndexFunc(Parameters, func(s ParameterSpec) bool { return s.Key == key })
	if i < 0 {
		nearest, _ := nearestKey(key, ownKeys())
		return unknownKey(key, nearest)
	}
	spec := Parameters[i]
	if spec.Type == TypeEnum && !slices.Contains(spec.Values, value) {
		return status.Errorf(codes.InvalidArgument, "parameter %s: %q is not one of %s", key, value, strings.Join(spec.Values, ", "))
	}
	if err := spec.set(p, value); err != nil {
		return status.Errorf(codes.InvalidArgument, "parameter %s: %v", key, err)
	}
	return nil
}

// validate checks what several keys say together.
func (p *volumeParameters) validate() error {
	inGroup := ""
	switch {
	case p.Group != "" || p.groupTemplate != "":
		inGroup = ParamConsistencyGroup
	case p.Remote != "":
		inGroup = ParamRemote
	}
	switch {
	case p.Replication == ReplicationOff && inGroup != "":
		return status.Errorf(codes.InvalidArgument, "parameter %s is %s, but %s asks for it: remove one of the two", ParamReplication, p.Replication, inGroup)
	case p.Replication == ReplicationOn && inGroup == "":
		return status.Errorf(codes.InvalidArgument, "parameter %s is %s, but nothing says where: add %s or %s", ParamReplication, p.Replication, ParamConsistencyGroup, ParamRemote)
	}
	if inGroup != "" {
		if p.replicableGiven && !p.Replicable {
			return status.Errorf(codes.InvalidArgument,
				"parameter %s needs a replicable volume, but %s is false: remove one of the two", inGroup, ParamReplicable)
		}
		p.Replicable = true
	}
	if p.orderGiven && !p.Replicable {
		return status.Errorf(codes.InvalidArgument,
			"parameter %s has a meaning for replicable volumes only: add %s: \"true\" or remove it", ParamOrder, ParamReplicable)
	}
	if p.IOBytesPerSecond != 0 || p.IOPS != 0 {
		key := ParamIOBytes
		if p.IOBytesPerSecond == 0 {
			key = ParamIOPS
		}
		if !p.Replicable {
			return status.Errorf(codes.InvalidArgument, "parameter %s is for replicable volumes only, since the I/O of others goes by the kernel's loop driver alone: "+
				"add %s: \"true\", or remove it and limit the pods (io.max of their cgroups)", key, ParamReplicable)
		}
	}
	journalKey := ""
	switch {
	case p.JournalSizeBytes != 0:
		journalKey = ParamJournalSize
	case p.JournalFull != "":
		journalKey = ParamJournalFull
	case p.RPOTargetMillis != 0:
		journalKey = ParamRPOTarget
	case p.ShipBytesPerSecond != 0:
		journalKey = ParamReplicationRate
	}
	if journalKey != "" && inGroup == "" {
		return status.Errorf(codes.InvalidArgument,
			"parameter %s describes a group: add %s or %s, or remove it", journalKey, ParamConsistencyGroup, ParamRemote)
	}
	return nil
}

func unknownKey(key, nearest string) error {
	return status.Errorf(codes.InvalidArgument, "unknown parameter %q: did you mean %q?", key, nearest)
}

func ownKeys() []string {
	keys := make([]string, len(Parameters))
	for i, spec := range Parameters {
		keys[i] = spec.Key
	}
	return keys
}

// nearestKey returns the known key with the smallest edit distance to key, the first of several, and the distance.
func nearestKey(key string, known []string) (nearest string, distance int) {
	distance = math.MaxInt
	for _, candidate := range known {
		if d := editDistance(key, candidate); d < distance {
			nearest, distance = candidate, d
		}
	}
	return nearest, distance
}

// editDistance is the Levenshtein distance in bytes.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			substitute := diagonal
			if a[i] != b[j] {
				substitute++
			}
			diagonal = row[j+1]
			row[j+1] = min(substitute, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// parseBool takes "true" and "false" only: strconv.ParseBool would take "T" and "1", which no documentation promises.
func parseBool(value string) (bool, error) {
	switch value {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, fmt.Errorf("%q is not true or false", value)
}

var namePattern = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?$`)

func parseName(value string) (string, error) {
	if !namePattern.MatchString(value) {
		return "", fmt.Errorf("%q is not a name: at most 63 of a-z, 0-9, '-' and '.', beginning and ending with a letter or digit", value)
	}
	return value, nil
}

// parseMillis reads a duration in whole milliseconds, as 500ms, 5s or 1h, or 0.
func parseMillis(value string) (int64, error) {
	d, err := time.ParseDuration(value)
	if err != nil || d < 0 || d%time.Millisecond != 0 || d > maxRPOTarget {
		return 0, fmt.Errorf("%q is not a duration such as 500ms, 5s or 1h, of whole milliseconds and at most a year", value)
	}
	return d.Milliseconds(), nil
}

// maxRPOTarget is the replicator's.
const maxRPOTarget = 365 * 24 * time.Hour

var quantitySuffixes = []struct {
	suffix string
	factor int64
}{
	// Binary suffixes first: "Mi" also ends in a letter that a decimal suffix could match.
	{"Ki", 1 << 10}, {"Mi", 1 << 20}, {"Gi", 1 << 30}, {"Ti", 1 << 40}, {"Pi", 1 << 50},
	{"k", 1e3}, {"M", 1e6}, {"G", 1e9}, {"T", 1e12}, {"P", 1e15},
	{"", 1},
}

// parseQuantity reads a number of bytes in the notation of Kubernetes quantities: digits and one of the suffixes Ki, Mi, Gi,
// Ti, Pi, k, M, G, T, P, or none. Fractions and exponents, which Kubernetes also knows, are refused rather than rounded.
func parseQuantity(value string) (int64, error) {
	for _, s := range quantitySuffixes {
		digits, ok := strings.CutSuffix(value, s.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(digits, 10, 63)
		if err != nil {
			break
		}
		if n == 0 {
			return 0, fmt.Errorf("%q is zero", value)
		}
		if int64(n) > math.MaxInt64/s.factor {
			return 0, fmt.Errorf("%q is more than the largest possible size", value)
		}
		return int64(n) * s.factor, nil
	}
	return 0, fmt.Errorf("%q is not a quantity such as 64Mi or 1Gi", value)
}
