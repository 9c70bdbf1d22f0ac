package parameter

import (
	"fmt"
	"math"
	"strconv"

	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/schedule"
)

// Type says how a parameter's value is written.
type Type string

const (
	TypeBool     Type = "true | false"
	TypeName     Type = "name"
	TypeEnum     Type = "one of"
	TypeQuantity Type = "quantity"
	TypeDuration Type = "duration"
	TypeNumber   Type = "number"
	TypeSchedule Type = "schedule"
)

// Spec describes one StorageClass parameter. The documentation of parameters is generated from Parameters.
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
			"Needs the replicator beside the driver. " + KeyConsistencyGroup + " and " + KeyRemote + " imply it.",
		set: func(p *Volume, v string) (err error) {
			p.replicableGiven = true
			p.Replicable, err = parseBool(v)
			return err
		},
	},
	{
		Key: KeyConsistencyGroup, Type: TypeName, Mutable: true,
		Doc: "Name of the consistency group that the volume joins. The first volume creates the group. All volumes of the " +
			"group are on the node of the first one, and their pods run there. For one group of claims on several nodes, " +
			"leave the parameter out and have the operator make the group (docs/guides/kubernetes.md). A change moves the " +
			"volume into the other group, and its copy there begins anew. At creation, `${pvc.namespace}`, `${pvc.name}` and " +
			"`${pv.name}` are replaced by those of the claim. This needs a provisioner with `--extra-create-metadata`. " +
			"`${pvc.namespace}` makes one group for each namespace.",
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
		Key: KeySharedGroup, Type: TypeBool, Default: "false", Mutable: true,
		Doc: "Let the claims of several namespaces be in the group that this class names: in one journal and one failover. " +
			"Without it a claim does not join a group that has a volume of another namespace. It counts only in the class " +
			"that names the group.",
		set: func(p *Volume, v string) (err error) {
			p.SharedGroup, err = parseBool(v)
			return err
		},
	},
	{
		Key: KeyRemote, Type: TypeName, Mutable: true,
		Doc: "Name of the site that the volume's group replicates to. Without " + KeyConsistencyGroup + " the volume " +
			"gets a " +
			"group of its own, named after its id. After a change the volumes of the group are copied to the new site from " +
			"nothing. The copy at the old site stays as it was.",
		set: func(p *Volume, v string) (err error) {
			p.Remote, err = parseName(v)
			return err
		},
	},
	{
		Key: KeyOrder, Type: TypeEnum, Values: []string{OrderAck, OrderFlush}, Default: OrderAck, Mutable: true,
		Doc: "ack: a disk without a volatile cache. An acknowledged write is durable, and the secondary keeps the order of " +
			"all acknowledged writes. flush: a disk with a volatile cache. The secondary keeps the order that completed " +
			"flushes give: faster for unflushed writes, slower for flushes. The order can change only while the " +
			"volume is not staged.",
		set: func(p *Volume, v string) error {
			p.orderGiven, p.Order = true, v
			return nil
		},
	},
	{
		Key: KeyJournalSize, Type: TypeQuantity, Default: "1Gi", Mutable: true,
		Doc: "Size of the group's journal, at least 16Mi. All volumes of a group must have the same value.",
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
		Doc: "What happens when the journal is full of records that the peer has not acknowledged. track: the oldest " +
			"records are folded into the change map, and writes continue. stall: writes wait.",
		set: func(p *Volume, v string) error {
			p.JournalFull = v
			return nil
		},
	},
	{
		Key: KeyRPOTarget, Type: TypeDuration, Default: "0", Mutable: true,
		Doc: "Largest lag of the group's copy. Status, metrics and health report a larger lag. 0: no target.",
		set: func(p *Volume, v string) (err error) {
			p.RPOTargetMillis, err = parseMillis(v)
			return err
		},
	},
	{
		Key: KeyHistory, Type: TypeDuration, Default: "0", Mutable: true,
		Doc: "How long earlier points are kept at the secondary, as in 30m, so that views can be opened at them. The " +
			"size of the journal bounds it. Status, metrics and health say when it is shorter. 0: not at all.",
		set: func(p *Volume, v string) (err error) {
			p.HistoryMillis, err = parseMillis(v)
			return err
		},
	},
	{
		Key: KeyReplicationRate, Type: TypeQuantity, Default: "0", Mutable: true,
		Doc: "Largest rate from the group to its remote, in bytes a second after compression, including syncs; at least " +
			"64Ki. 0: no limit. Writers do not wait for it; the lag grows.",
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
		Key: KeyRateSchedule, Type: TypeSchedule, Mutable: true,
		Doc: "Largest rate from the group to its remote by time of day, such as `08:00-18:00=20MiB,*=unlimited`. `*` is " +
			"for all other times; without it " + KeyReplicationRate + " holds then. The times are of the zone of the node, or " +
			"of the zone that `zone=Europe/Berlin` names. In a VolumeAttributesClass, `none` takes the schedule away.",
		set: func(p *Volume, v string) error {
			if v == ScheduleNone {
				return nil
			}
			p.ShipSchedule = v
			_, err := schedule.Parse(v)
			return err
		},
	},
	{
		Key: KeyKeepTails, Type: TypeNumber, Default: "0", Mutable: true,
		Doc: "How many divergent tails of the group its site keeps: the writes that it gave up each time it yielded. Older " +
			"ones are deleted. The newest always stays. 0: all stay. The setting is of the site where the parameter is " +
			"given; the peer has its own (slipctl group set).",
		set: func(p *Volume, v string) error {
			n, err := strconv.ParseUint(v, 10, 32)
			if err != nil {
				return fmt.Errorf("%q is not a number from 0 to %d", v, uint32(math.MaxUint32))
			}
			p.TailsMost = uint32(n)
			return nil
		},
	},
	{
		Key: KeyKeepTailsFor, Type: TypeDuration, Default: "0", Mutable: true,
		Doc: "How long the site keeps divergent tails of the group, as in 720h. The newest always stays. 0: without limit. " +
			"Otherwise as " + KeyKeepTails + ".",
		set: func(p *Volume, v string) (err error) {
			p.TailsMillis, err = parseMillis(v)
			return err
		},
	},
	{
		Key: KeyReplication, Type: TypeEnum, Values: []string{ReplicationOn, ReplicationOff}, Mutable: true,
		Doc: "off: the volume leaves its group and uses its image only. Its copy stays at the remote as it was. on: the " +
			"volume joins the group that the other parameters name; without one, its last group if that exists; otherwise " +
			"the group of its creation. " + KeyConsistencyGroup + " and " + KeyRemote + " imply on.",
		set: func(p *Volume, v string) error {
			p.Replication = v
			return nil
		},
	},
	{
		Key: KeyIOBytes, Type: TypeQuantity, Default: "0", Mutable: true,
		Doc: "Largest rate of reads and writes of the volume together, in bytes a second, at least 1Mi. 0: no limit. For " +
			"replicable volumes. Excess I/O waits, including writes from the page cache. So an fsync, and unmounting a volume " +
			"with much unwritten data, take as long as the limit requires. An idle volume saves up a tenth of a second's " +
			"worth. The copy at the other site has no limits, and gets none when it is promoted. The replicator's metrics " +
			"have the limits of attached volumes, and count delayed operations " +
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
		Doc: "Largest rate of reads and writes of the volume together, in requests a second, at least 10. 0: no limit. " +
			"Requests count as they reach the volume, after the page cache has merged them. Flushes and discards do not " +
			"count. Otherwise as " + KeyIOBytes + ".",
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
		Doc: "thin: the image takes space when it is written. thick: the space of the image is reserved at creation.",
		set: func(p *Volume, v string) error {
			p.Thick = v == ProvisioningThick
			return nil
		},
	},
}
