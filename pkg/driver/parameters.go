package driver

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"

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
)

// ParameterType says how a parameter's value is written.
type ParameterType string

const (
	TypeBool     ParameterType = "true | false"
	TypeName     ParameterType = "name"
	TypeEnum     ParameterType = "one of"
	TypeQuantity ParameterType = "quantity"
)

// ParameterSpec describes one StorageClass parameter. The documentation of parameters is generated from Parameters.
type ParameterSpec struct {
	Key  string
	Type ParameterType
	// Values are the legal values of a TypeEnum; the first is not necessarily the default.
	Values []string
	// Default is what an absent key means, in the value's own notation; empty where absence means "none".
	Default string
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
		Key: ParamConsistencyGroup, Type: TypeName,
		Doc: "Name of the consistency group that the volume joins when it is created. The first volume creates the group.",
		set: func(p *volumeParameters, v string) (err error) {
			p.Group, err = parseName(v)
			return err
		},
	},
	{
		Key: ParamRemote, Type: TypeName,
		Doc: "Name of the site that the volume's group replicates to. Without " + ParamConsistencyGroup +
			" the volume gets a group of its own, named after its id.",
		set: func(p *volumeParameters, v string) (err error) {
			p.Remote, err = parseName(v)
			return err
		},
	},
	{
		Key: ParamOrder, Type: TypeEnum, Values: []string{OrderFlush, OrderAck}, Default: OrderFlush,
		Doc: "What the secondary keeps in order. flush: writes, as far as completed flushes order them, at nearly no cost. " +
			"ack: every acknowledged write, at the price of slower writes.",
		set: func(p *volumeParameters, v string) error {
			p.orderGiven, p.Order = true, v
			return nil
		},
	},
	{
		Key: ParamJournalSize, Type: TypeQuantity, Default: "1Gi",
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
		Key: ParamJournalFull, Type: TypeEnum, Values: []string{JournalFullTrack, JournalFullStall}, Default: JournalFullTrack,
		Doc: "What happens when the journal is full of records that the peer has not acknowledged. track: the oldest are " +
			"folded into the change map and writes go on. stall: writes wait.",
		set: func(p *volumeParameters, v string) error {
			p.JournalFull = v
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

// knownKubernetesKeys are accepted and, except for fstype, not used: the driver has no access to the API server.
var knownKubernetesKeys = []string{
	paramFSType,
	kubernetesPrefix + "pvc/name",
	kubernetesPrefix + "pvc/namespace",
	kubernetesPrefix + "pv/name",
}

// minJournalSizeBytes keeps room for a few segments; below it every write would wait for a trim.
const minJournalSizeBytes = 16 << 20

// defaultJournalSizeBytes is the replicator's default; see CreateGroupRequest.
const defaultJournalSizeBytes = 1 << 30

// volumeParameters are the parameters of one volume, with defaults filled in.
type volumeParameters struct {
	// FSType is empty unless the CO passed csi.storage.k8s.io/fstype.
	FSType           string
	Replicable       bool
	Group            string
	Remote           string
	Order            string
	JournalSizeBytes int64 // 0: the replicator's default
	JournalFull      string
	Thick            bool

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
	case p.Group != "":
		inGroup = ParamConsistencyGroup
	case p.Remote != "":
		inGroup = ParamRemote
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
	journalKey := ""
	switch {
	case p.JournalSizeBytes != 0:
		journalKey = ParamJournalSize
	case p.JournalFull != "":
		journalKey = ParamJournalFull
	}
	if journalKey != "" && inGroup == "" {
		return status.Errorf(codes.InvalidArgument,
			"parameter %s describes the journal of a group: add %s or %s, or remove it", journalKey, ParamConsistencyGroup, ParamRemote)
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
