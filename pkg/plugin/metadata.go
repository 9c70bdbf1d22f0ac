package plugin

// LeaseMetadata is the gRPC metadata key under which a CreateVolume over TCP names its lease on the volume's name (see
// locate.proto). Its value is older than the word lease: it is part of the protocol between controllers and nodes,
// which may be of different versions during an upgrade.
const LeaseMetadata = "slipstream-claim"

// NodeMetadata is the gRPC metadata key under which a call over TCP names the node that it is for. A node refuses a
// call for another one: an address may have moved to another node, which must not answer that a volume does not exist.
const NodeMetadata = "slipstream-node"

// GroupPartMetadata is the gRPC metadata key under which a CreateVolumeGroupSnapshot over TCP says that its volumes are
// a part of a group snapshot over several nodes. GroupPart is its form.
const GroupPartMetadata = "slipstream-group-part"
