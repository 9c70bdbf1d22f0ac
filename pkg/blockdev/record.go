package blockdev

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/google/uuid"

	"github.com/slipstream-storage/slipstream/pkg/recordfile"
	"github.com/slipstream-storage/slipstream/pkg/untrusted"
)

// Order is when a write has its place in the group's order.
type Order string

const (
	// OrderFlush: at the latest at the flush that makes it durable, like a disk with a volatile write cache.
	OrderFlush Order = "flush"
	// OrderAck: before it is acknowledged, and durable then, like a disk without a volatile write cache.
	OrderAck Order = "ack"
)

// VolumeState is where a volume is in its life.
type VolumeState string

const (
	// VolumeCreating: its contents are not complete yet (a copy is running). It must not be attached.
	VolumeCreating VolumeState = "creating"
	VolumeReady    VolumeState = "ready"
	// VolumeDeleting: to be deleted as soon as nothing uses it. It must not be attached anew.
	VolumeDeleting VolumeState = "deleting"
)

// FormatState is how far making a file system got.
type FormatState string

const (
	// FormatFormatting: mkfs was started, and nothing else has written since: it may be started again.
	FormatFormatting FormatState = "formatting"
	// FormatFormatted: there is a file system. It is never made again, whatever the image looks like: a blank one is
	// damage.
	FormatFormatted FormatState = "formatted"
)

// File systems of volumes. The list is closed: a type from a record reaches mount and mkfs.
const (
	FSExt4 = "ext4"
	FSXFS  = "xfs"
	// FSRaw stands in the format record of a raw block volume. It is never wanted and never mounted.
	FSRaw = "raw"
)

// ValidateFSType checks that a file system can be made and mounted: FSExt4 or FSXFS.
func ValidateFSType(fsType string) error {
	if fsType != FSExt4 && fsType != FSXFS {
		return fmt.Errorf("file system \"%s\" is neither %s nor %s", untrusted.Escape(fsType, maxShownBytes), FSExt4, FSXFS)
	}
	return nil
}

// FormatRecord says which file system was made on a volume. It decides about mkfs, not a look at the image, which may
// be damaged and then looks blank.
type FormatRecord struct {
	State   FormatState `json:"state"`
	FSType  string      `json:"fsType"`
	UUID    string      `json:"uuid,omitempty"`
	Options []string    `json:"options,omitempty"` // of mkfs
}

// StageRecord says where a volume is staged on this node, so that a driver that was restarted finds it.
type StageRecord struct {
	StagingPath  string   `json:"stagingPath"`         // without symbolic links
	GivenPath    string   `json:"givenPath,omitempty"` // as the CO named it
	Device       string   `json:"device"`              // /dev/loopN when it was staged; look it up again after a reboot
	BackingPath  string   `json:"backingPath"`         // the image, or the shim's file
	Image        FileID   `json:"image,omitzero"`      // what the device is over, if it is the image; names change
	FSType       string   `json:"fsType,omitempty"`
	MountOptions []string `json:"mountOptions,omitempty"`
	ReadOnly     bool     `json:"readOnly,omitempty"`
	Block        bool     `json:"block,omitempty"` // published as a raw block device
}

// LeftRecord says where a copy that is in no group comes from.
type LeftRecord struct {
	Peer      string `json:"peer"`      // site of its primary
	Group     string `json:"group"`     // empty where an earlier release did not note it
	UnixNanos int64  `json:"unixNanos"` // when it left the group, by this site's clock; 0 where that is not known
}

// VolumeRecord is what is durable about a volume; the body of volume.json. Its fields are only added to, with a new
// version when an older program could do harm by not knowing one.
type VolumeRecord struct {
	ID             string            `json:"id"`
	Name           string            `json:"name"` // the CSI name, by which creation is idempotent
	SizeBytes      int64             `json:"sizeBytes"`
	BlockSizeBytes int64             `json:"blockSizeBytes"` // logical block size of the loop device
	Thick          bool              `json:"thick,omitempty"`
	Replicable     bool              `json:"replicable,omitempty"` // attached through the shim
	Order          Order             `json:"order,omitempty"`      // of a replicable volume
	Group          string            `json:"group,omitempty"`      // consistency group; empty for none
	Remote         string            `json:"remote,omitempty"`     // site of the peer; without a group, of the primary
	MoveTo         string            `json:"moveTo,omitempty"`     // group it is on its way to, out of another one
	Joins          uint64            `json:"joins,omitempty"`      // groups it has been put into, as its primary counts
	FSType         string            `json:"fsType,omitempty"`     // wanted; Format says what is there
	Parameters     map[string]string `json:"parameters,omitempty"`
	// IOBytesPerSecond and IOPS bound the reads and writes of a replicable volume together; 0 is no bound.
	IOBytesPerSecond int64 `json:"ioBytesPerSecond,omitempty"`
	IOPS             int64 `json:"iops,omitempty"`
	// MutableParameters are those that it was created with beside Parameters, and that go before them.
	MutableParameters map[string]string `json:"mutableParameters,omitempty"`
	Format            *FormatRecord     `json:"format,omitempty"`
	Claim             *ClaimRecord      `json:"claim,omitempty"`
	Stage             *StageRecord      `json:"stage,omitempty"`
	State             VolumeState       `json:"state"`
	// Secondary: this site holds the copy of a volume that is primary elsewhere. Without a group it is what the volume was
	// when it left its last one.
	Secondary bool `json:"secondary,omitempty"`
	// Left is the group that a copy was in last, for one that is in none; nil for other volumes.
	Left *LeftRecord `json:"left,omitempty"`
	// Unwanted: the CO of this site has deleted the volume while it was the copy of another site's. The copy stays until
	// its primary takes the volume out of the group. A promotion here makes the volume wanted again.
	Unwanted bool `json:"unwanted,omitempty"`
	// View is the volume of a view that this one shows; nil for other volumes. Such a volume has no image.
	View *ViewRef `json:"view,omitempty"`
	// Source is what the volume was made from; nil for one that began with zeros.
	Source *ContentSource `json:"source,omitempty"`
	// CopiedBytes of the source are in the image for good, while State is creating.
	CopiedBytes int64 `json:"copiedBytes,omitempty"`
	// GrowFileSystem: the volume is larger than its source was, and the file system is still to be grown.
	GrowFileSystem   bool  `json:"growFileSystem,omitempty"`
	CreatedUnixNanos int64 `json:"createdUnixNanos"`
}

// ContentSource is a snapshot or a volume, one of the two.
type ContentSource struct {
	SnapshotID string `json:"snapshotID,omitempty"`
	VolumeID   string `json:"volumeID,omitempty"`
}

const (
	// DefaultBlockSizeBytes is the logical block size when a record does not say. File systems and databases write 4 KiB.
	DefaultBlockSizeBytes = 4096
	minBlockSizeBytes     = 512
	maxBlockSizeBytes     = 4096 // the page size, the loop driver's limit
)

// maxIDLength leaves room for the suffixes of a volume's directory in a name of 255 bytes.
const maxIDLength = 200

// ValidateID checks the id of a volume or group: 1 to 200 of a-z, 0-9 and -, not beginning with -. It becomes the
// name of a directory, so nothing else is let through.
func ValidateID(id string) error {
	if id == "" || len(id) > maxIDLength || id[0] == '-' {
		return fmt.Errorf("id %.80q: want 1 to %d of a-z, 0-9 and -, not beginning with -", id, maxIDLength)
	}
	for _, c := range []byte(id) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return fmt.Errorf("id %.80q: %q is not one of a-z, 0-9 and -", id, c)
		}
	}
	return nil
}

// Bounds of what a record says besides sizes.
const (
	maxNameBytes     = 256 // of a volume, its group or its site
	maxFormatOptions = 32
	maxOptionBytes   = 256
	maxJoins         = 1 << 40 // far below where one more would be 0
	maxShownBytes    = 80      // of a wrong value, in an error
)

// Served reports whether the volume's device is over a file that the replicator serves, and not over the image.
func (r *VolumeRecord) Served() bool { return r.Replicable || r.View != nil }

// setDefaults fills in what a new record may leave out.
func (r *VolumeRecord) setDefaults() {
	if r.BlockSizeBytes == 0 {
		r.BlockSizeBytes = DefaultBlockSizeBytes
	}
	if r.State == "" {
		r.State = VolumeReady
	}
	if r.Replicable && r.Order == "" {
		r.Order = OrderFlush
	}
}

// WithDefaults returns a copy of a record with what a new one may leave out.
func (r *VolumeRecord) WithDefaults() *VolumeRecord {
	c := r.Clone()
	c.setDefaults()
	return c
}

// Validate says what is wrong with a record. It is the one check of what a volume may be, wherever the record comes
// from: a call, a peer that describes a member of a group, or the file on disk. It does not look at Parameters, which
// the driver parses.
func (r *VolumeRecord) Validate() error {
	if err := ValidateID(r.ID); err != nil {
		return fmt.Errorf("volume %w", err)
	}
	fail := func(format string, args ...any) error {
		return fmt.Errorf("volume %s: %s", r.ID, fmt.Sprintf(format, args...))
	}
	if err := checkShape(r.SizeBytes, r.BlockSizeBytes, r.Order); err != nil {
		return fail("%v", err)
	}
	if err := checkContent(r.FSType, r.Format); err != nil {
		return fail("%v", err)
	}
	if err := r.checkNames(); err != nil {
		return fail("%v", err)
	}
	switch {
	case r.View != nil && r.ID != ViewVolumeID(r.View.ViewID, r.View.Index):
		return fail("it shows volume %d of view %.80q, and has not the id of that", r.View.Index, r.View.ViewID)
	case r.View != nil && (r.Replicable || r.Thick || r.Group != "" || r.MoveTo != ""):
		return fail("it shows a view, and has an image or a group")
	case r.Replicable && r.Order == "":
		return fail("replicable, but without an order")
	case !slices.Contains([]VolumeState{VolumeCreating, VolumeReady, VolumeDeleting}, r.State):
		return fail("state \"%s\" is unknown", untrusted.Escape(string(r.State), maxShownBytes))
	case r.IOBytesPerSecond < 0 || r.IOPS < 0:
		return fail("a limit of its I/O is negative")
	case r.Joins > maxJoins:
		return fail("it says that it was put into %d groups, the limit is %d", r.Joins, int64(maxJoins))
	}
	return nil
}

// checkNames says what is wrong with the names in a record, all of which are shown, and some of which end in manifests.
func (r *VolumeRecord) checkNames() error {
	if r.Name != "" { // a copy of a volume that was made without one
		if err := untrusted.CheckCSIName("name", r.Name, maxNameBytes); err != nil {
			return err
		}
	}
	for _, text := range []struct{ what, value string }{
		{"group", r.Group}, {"group to move to", r.MoveTo}, {"remote site", r.Remote},
		{"site that it is a copy of", r.left().Peer}, {"group that it left", r.left().Group},
	} {
		if err := untrusted.CheckText(text.what, text.value, maxNameBytes); err != nil {
			return err
		}
	}
	if r.Stage != nil && r.Stage.FSType != "" {
		if err := ValidateFSType(r.Stage.FSType); err != nil {
			return fmt.Errorf("staged: %w", err)
		}
	}
	return r.Claim.Validate()
}

// left is Left; zero without one.
func (r *VolumeRecord) left() (left LeftRecord) {
	if r.Left != nil {
		left = *r.Left
	}
	return left
}

// CopyOf says where a copy that is in no group comes from; nil for other volumes. That of an earlier release has its
// peer alone.
func (r *VolumeRecord) CopyOf() *LeftRecord {
	switch {
	case r.Group != "":
		return nil
	case r.Left == nil && r.Secondary:
		return &LeftRecord{Peer: r.Remote}
	case r.Left == nil:
		return nil
	}
	return new(*r.Left)
}

// checkContent says what is wrong with what a volume or snapshot is to be formatted with, and was. The UUID and the
// type become arguments of mkfs.
func checkContent(fsType string, format *FormatRecord) error {
	if fsType != "" {
		if err := ValidateFSType(fsType); err != nil {
			return err
		}
	}
	if format == nil {
		return nil
	}
	if format.State != FormatFormatting && format.State != FormatFormatted {
		return fmt.Errorf("format state \"%s\" is unknown", untrusted.Escape(string(format.State), maxShownBytes))
	}
	if format.FSType != FSRaw {
		if err := ValidateFSType(format.FSType); err != nil {
			return fmt.Errorf("formatted: %w", err)
		}
	}
	if u, err := uuid.Parse(format.UUID); format.UUID != "" && (err != nil || u.String() != format.UUID) {
		return fmt.Errorf("formatted: \"%s\" is no UUID of a file system", untrusted.Escape(format.UUID, maxShownBytes))
	}
	if len(format.Options) > maxFormatOptions {
		return fmt.Errorf("formatted with %d options, the limit is %d", len(format.Options), maxFormatOptions)
	}
	for _, o := range format.Options {
		if err := untrusted.CheckText("format option", o, maxOptionBytes); err != nil {
			return err
		}
	}
	return nil
}

// checkShape says what is wrong with what a volume and its snapshots have in common.
func checkShape(sizeBytes, blockSizeBytes int64, order Order) error {
	b := blockSizeBytes
	switch {
	case b < minBlockSizeBytes || b > maxBlockSizeBytes || b&(b-1) != 0:
		return fmt.Errorf("block size %d is not a power of two from %d to %d", b, minBlockSizeBytes, maxBlockSizeBytes)
	case sizeBytes <= 0 || sizeBytes%b != 0:
		return fmt.Errorf("size %d is not a positive multiple of its block size %d", sizeBytes, b)
	case !slices.Contains([]Order{"", OrderFlush, OrderAck}, order):
		return fmt.Errorf("order \"%s\" is neither %q nor %q", untrusted.Escape(string(order), maxShownBytes), OrderFlush,
			OrderAck)
	}
	return nil
}

// Clone returns a copy that shares nothing.
func (r *VolumeRecord) Clone() *VolumeRecord {
	c := *r
	c.Parameters, c.MutableParameters = maps.Clone(r.Parameters), maps.Clone(r.MutableParameters)
	if r.Format != nil {
		f := *r.Format
		f.Options = slices.Clone(f.Options)
		c.Format = &f
	}
	c.Claim = r.Claim.clone()
	if r.View != nil {
		c.View = new(*r.View)
	}
	if r.Source != nil {
		s := *r.Source
		c.Source = &s
	}
	if r.Left != nil {
		c.Left = new(*r.Left)
	}
	if r.Stage != nil {
		s := *r.Stage
		s.MountOptions = slices.Clone(s.MountOptions)
		c.Stage = &s
	}
	return &c
}

// String is for logs: the JSON in one line.
func (r *VolumeRecord) String() string {
	text, err := json.Marshal(r)
	if err != nil {
		return "volume " + r.ID
	}
	return string(text)
}

const kindVolume = "volume"

// EncodeVolumeRecord returns the contents of volume.json.
func EncodeVolumeRecord(r *VolumeRecord) ([]byte, error) {
	if err := r.Validate(); err != nil {
		return nil, err
	}
	return recordfile.Encode(kindVolume, r)
}

// DecodeVolumeRecord reads the contents of volume.json; errors are those of recordfile.Decode.
func DecodeVolumeRecord(path string, data []byte) (*VolumeRecord, error) {
	r := &VolumeRecord{}
	if err := recordfile.Decode(path, kindVolume, data, r); err != nil {
		return nil, err
	}
	if err := r.Validate(); err != nil {
		return nil, &recordfile.CorruptError{Path: path, OffsetBytes: -1, Reason: err.Error()}
	}
	return r, nil
}
