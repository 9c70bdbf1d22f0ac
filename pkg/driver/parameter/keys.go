package parameter

import (
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
)

// ParameterPrefix is the domain of the driver's own StorageClass parameters.
const Prefix = "slipstream.dev/"

// kubernetesPrefix is reserved by Kubernetes. The provisioner strips what it consumes itself (fstype, secrets) and adds
// the names of the claim and the volume; a CO that is not Kubernetes may pass fstype on.
const kubernetesPrefix = "csi.storage.k8s.io/"

// Keys of the driver's StorageClass parameters. A key's meaning never changes; a new meaning gets a new key.
const (
	KeyReplicable       = Prefix + "replicable"
	KeyConsistencyGroup = Prefix + "consistency-group"
	KeySharedGroup      = Prefix + "shared-group"
	KeyRemote           = Prefix + "remote"
	KeyOrder            = Prefix + "order"
	KeyJournalSize      = Prefix + "journal-size"
	KeyJournalFull      = Prefix + "journal-full"
	KeyProvisioning     = Prefix + "provisioning"
	KeyReplication      = Prefix + "replication"
	KeyRPOTarget        = Prefix + "rpo-target"
	KeyHistory          = Prefix + "history"
	KeyReplicationRate  = Prefix + "replication-rate"
	KeyRateSchedule     = Prefix + "replication-rate-schedule"
	KeyKeepTails        = Prefix + "keep-tails"
	KeyKeepTailsFor     = Prefix + "keep-tails-for"
	KeyIOBytes          = Prefix + "io-bytes-per-second"
	KeyIOPS             = Prefix + "iops"

	KeyFSType = kubernetesPrefix + "fstype"
)

// Values of enumerated parameters.
const (
	OrderFlush = string(blockdev.OrderFlush)
	OrderAck   = string(blockdev.OrderAck)

	JournalFullTrack = string(core.PolicyTrack)
	JournalFullStall = string(core.PolicyStall)

	ProvisioningThin  = "thin"
	ProvisioningThick = "thick"

	ScheduleNone = "none"

	ReplicationOn  = "on"
	ReplicationOff = "off"
)

// minJournalSizeBytes leaves room for a few segments. In a smaller journal every write would wait for a trim.
const minJournalSizeBytes = 16 << 20

// Lower limits of a volume's I/O. Dozens of requests of up to 1 MiB are in flight at a time. Below these limits they
// would wait so long that the kernel reports the device as hung.
const (
	minIOBytesPerSecond = 1 << 20
	minIOPS             = 10
)
