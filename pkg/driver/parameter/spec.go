package parameter

import (
	"fmt"
	"strconv"

	"github.com/slipstream-storage/slipstream/pkg/replication/core"
)

// ParameterType says how a parameter's value is written.
type Type string

const (
	TypeBool     Type = "true | false"
	TypeName     Type = "name"
	TypeEnum     Type = "one of"
	TypeQuantity Type = "quantity"
	TypeDuration Type = "duration"
	TypeNumber   Type = "number"
)

// ParameterSpec describes one StorageClass parameter. The documentation of parameters is generated from Parameters.
type Spec struct {
	Key  string
	Type Type
	// Values are the legal values of a TypeEnum; the first is not necessarily the default.
	Values []string
	// Default is what an absent key means, in the value's own notation; empty where absence means "none".
	Default string
	// Mutable: a VolumeAttributesClass may have it, and change it for a volume in use.
	Mutable bool
	Doc     string

	set func(p *Volume, value string) error
}

// Parameters is the registry of the keys under ParameterPrefix, in the order in which documentation lists them.
var Specs = []Spec{
	{
		Key: KeyReplicable, Type: TypeBool, Default: "false",
		Doc: "Attach the volume through the shim, so that replication can be switched on and off while it is mounted. " +
			"Needs the replicator beside the driver. Implied by " + KeyConsistencyGroup + " and " + KeyRemote + ".",
		set: func(p *Volume, v string) (err error) {
			p.replicableGiven = true
			p.Replicable, err = parseBool(v)
			return err
		},
	},
	{
		Key: KeyConsistencyGroup, Type: TypeName, Mutable: true,
		Doc: "Name of the consistency group that the volume joins. The first volume creates the group. Changed, the " +
			"volume moves into the other group, " +
			"and its copy there begins anew. When a volume is created, `${pvc.namespace}`, `${pvc.name}` and `${pv.name}` in " +
			"it stand for the claim's, with a " +
			"provisioner that runs with `--extra-create-metadata`: `${pvc.namespace}` is one group for each namespace.",
		set: func(p *Volume, v string) (err error) {
			if isGroupTemplate(v) {
				p.groupTemplate = v
				return checkGroupTemplate(v)
			}
			p.Group, err = parseName(v)
			return err
		},
	},
	{
		Key: KeyRemote, Type: TypeName, Mutable: true,
		Doc: "Name of the site that the volume's group replicates to. Without " + KeyConsistencyGroup +
			" the volume gets a group of its own, named after its id. Changed, the group's volumes are copied to the other " +
			"site from nothing; " +
			"the copy at the old one stays there as it was.",
		set: func(p *Volume, v string) (err error) {
			p.Remote, err = parseName(v)
			return err
		},
	},
	{
		Key: KeyOrder, Type: TypeEnum, Values: []string{OrderFlush, OrderAck}, Default: OrderFlush, Mutable: true,
		Doc: "What the secondary keeps in order. flush: writes, as far as completed flushes order them, at nearly no cost. " +
			"ack: every acknowledged write, at the price of slower writes. It can be changed while the volume is not staged.",
		set: func(p *Volume, v string) error {
			p.orderGiven, p.Order = true, v
			return nil
		},
	},
	{
		Key: KeyJournalSize, Type: TypeQuantity, Default: "1Gi", Mutable: true,
		Doc: "Size of the group's journal, at least 16Mi. All volumes of a group must ask for the same size.",
		set: func(p *Volume, v string) error {
			n, err := ParseQuantity(v)
			if err == nil && n < minJournalSizeBytes {
				err = fmt.Errorf("%q is less than the minimum of 16Mi", v)
			}
			p.JournalSizeBytes = n
			return err
		},
	},
	{
		Key: KeyJournalFull, Type: TypeEnum, Values: []string{JournalFullTrack,
			JournalFullStall}, Default: JournalFullTrack, Mutable: true,
		Doc: "What happens when the journal is full of records that the peer has not acknowledged. track: the oldest are " +
			"folded into the change map and writes go on. stall: writes wait.",
		set: func(p *Volume, v string) error {
			p.JournalFull = v
			return nil
		},
	},
	{
		Key: KeyRPOTarget, Type: TypeDuration, Default: "0", Mutable: true,
		Doc: "How far the copy of the group may lag before its status, metrics and health say so; 0 for no target.",
		set: func(p *Volume, v string) (err error) {
			p.RPOTargetMillis, err = parseMillis(v)
			return err
		},
	},
	{
		Key: KeyReplicationRate, Type: TypeQuantity, Default: "0", Mutable: true,
		Doc: "Most bytes a second that are sent of the group to its remote, syncs included, after compression, at least " +
			"64Ki; 0 for no bound. " +
			"Writers do not notice it; the lag does.",
		set: func(p *Volume, v string) (err error) {
			if v != "0" {
				p.ShipBytesPerSecond, err = ParseQuantity(v)
			}
			if err == nil && v != "0" && p.ShipBytesPerSecond < core.MinShipBytesPerSecond {
				err = fmt.Errorf("%q is less than the minimum of 64Ki", v)
			}
			return err
		},
	},
	{
		Key: KeyReplication, Type: TypeEnum, Values: []string{ReplicationOn, ReplicationOff}, Mutable: true,
		Doc: "off: the volume leaves its group and is served from its image alone; its copy stays at the remote as it was " +
			"then. on: it joins the " +
			"group that the other parameters name, or else the one that it was last in, as long as that exists, or else the " +
			"one that it was made for. Implied by " + KeyConsistencyGroup + " and " + KeyRemote + ".",
		set: func(p *Volume, v string) error {
			p.Replication = v
			return nil
		},
	},
	{
		Key: KeyIOBytes, Type: TypeQuantity, Default: "0", Mutable: true,
		Doc: "Most bytes a second that the volume reads and writes together, at least 1Mi; 0 for no bound. For replicable " +
			"volumes. What is over it waits: " +
			"writes from the page cache as well, so an fsync, and the unmounting of a volume with much that is not written " +
			"yet, take as long as that takes. " +
			"An idle volume saves up a tenth of a second's worth. The copy at the other site has no limits, and gets none " +
			"when it is promoted. " +
			"The replicator's metrics have the limits of attached volumes, and count what had to wait " +
			"(slipstream_volume_delayed_operations_total).",
		set: func(p *Volume, v string) (err error) {
			if v != "0" {
				p.IOBytesPerSecond, err = ParseQuantity(v)
			}
			if err == nil && v != "0" && p.IOBytesPerSecond < minIOBytesPerSecond {
				err = fmt.Errorf("%q is less than the minimum of 1Mi", v)
			}
			return err
		},
	},
	{
		Key: KeyIOPS, Type: TypeNumber, Default: "0", Mutable: true,
		Doc: "Most reads and writes a second of the volume together, at least 10; 0 for no bound. Counted are requests as " +
			"they reach the volume, after the page cache " +
			"has merged them; flushes and discards are not. Otherwise as " + KeyIOBytes + ".",
		set: func(p *Volume, v string) (err error) {
			p.IOPS, err = strconv.ParseInt(v, 10, 64)
			if err != nil || p.IOPS < 0 || (p.IOPS > 0 && p.IOPS < minIOPS) {
				return fmt.Errorf("%q is neither 0 nor a number of at least %d", v, minIOPS)
			}
			return nil
		},
	},
	{
		Key: KeyProvisioning, Type: TypeEnum, Values: []string{ProvisioningThin,
			ProvisioningThick}, Default: ProvisioningThin,
		Doc: "thin: the image takes space as it is written. thick: the image's space is reserved when it is created.",
		set: func(p *Volume, v string) error {
			p.Thick = v == ProvisioningThick
			return nil
		},
	},
}
