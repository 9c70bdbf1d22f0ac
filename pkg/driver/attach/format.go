package attach

import (
	"context"
	"encoding/json"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/capability"
	"github.com/slipstream-storage/slipstream/pkg/driver/host"
	"github.com/slipstream-storage/slipstream/pkg/driver/work"
)

// The life of a volume's format record. It only moves down:
//
//	(none)       never formatted, never handed out as a raw device
//	   |  record written durably, and put into the group's order
//	formatting   mkfs may have begun; nothing was ever mounted
//	   |  mkfs succeeded, device synced
//	formatted    with the file system and its UUID: mounted, checked and grown, never made again
//
// or, for a raw block volume, (none) -> formatted with file system "raw": what is on it belongs to the application.
//
// What is found on the device decides only between mounting and refusing, never for mkfs: a wiped or unreadable
// superblock looks exactly like a new volume, and that is how other drivers have lost data.

// formatAction is what staging a file system volume does before the mount.
type formatAction int

const (
	actionMount formatAction = iota
	// actionFormat runs mkfs, which itself still refuses what it recognises.
	actionFormat
	// actionFormatAgain runs mkfs over what an interrupted mkfs left.
	actionFormatAgain
)

func (a formatAction) String() string {
	return [...]string{"mount", "format", "format again"}[a]
}

// found is what is on a device.
type found struct {
	host.Superblock
	Blank bool
}

// decideFormat decides what to do with a device that is to be mounted with fsType. An error is a status error that says
// what a person can do.
func decideFormat(rec *blockdev.VolumeRecord, fsType string, readOnly bool, on found) (formatAction, error) {
	refuse := func(format string, args ...any) (formatAction, error) {
		return 0, status.Errorf(codes.FailedPrecondition, "volume %s: "+format, append([]any{rec.ID}, args...)...)
	}
	switch f := rec.Format; {
	case f != nil && f.State == blockdev.FormatFormatted:
		if f.FSType != fsType {
			return refuse("it is formatted with %s, not %s: ask for %s, or make a new volume", f.FSType, fsType, f.FSType)
		}
		if on.FSType != fsType {
			what := "no superblock"
			if on.FSType != "" {
				what = "a superblock of " + on.FSType
			}
			return refuse("its record says %s with UUID %s, its device has %s. It is not formatted again, since that would "+
				"destroy what is left: "+
				"attach it and repair it (ext4: e2fsck -b 32768; xfs: xfs_repair), restore a copy, or delete the volume", fsType,
				f.UUID, what)
		}
		return actionMount, nil
	case f != nil && f.State == blockdev.FormatFormatting:
		if f.FSType != fsType {
			return refuse("formatting it with %s has begun, now %s is asked for: ask for %s, or make a new volume", f.FSType,
				fsType, f.FSType)
		}
		if readOnly {
			return refuse("formatting it has begun and not ended, and a read-only volume is never formatted: stage it " +
				"writable once")
		}
		return actionFormatAgain, nil
	case f != nil:
		return refuse("its record has the format state %q, which this driver does not know: run the driver that wrote it",
			f.State)
	case readOnly:
		return refuse("it was never formatted, and a read-only volume never is: stage it writable once")
	case !on.Blank || on.FSType != "":
		what := "data"
		if on.FSType != "" {
			what = on.FSType + " with UUID " + on.UUID
		}
		return refuse("it has no format record, but %s is on it, so it is not formatted. "+
			"If it is a promoted copy, its secondary missed the format record; use it as a raw block volume to look at it, "+
			"or delete it", what)
	}
	return actionFormat, nil
}

// inspect reads a device for decideFormat.
func (d *Attacher) inspect(rec *blockdev.VolumeRecord, device host.Device) (found, error) {
	var on found
	var err error
	if on.Superblock, err = d.Filesystems.Superblock(device.Path); err == nil && rec.Format == nil {
		on.Blank, err = d.Filesystems.Blank(device.Path)
	}
	if err != nil {
		return on, status.Errorf(codes.Internal, "volume %s: read what is on it: %v", rec.ID, err)
	}
	return on, nil
}

// format makes the file system. It leaves rec with the new format record.
func (d *Attacher) format(ctx context.Context, rec *blockdev.VolumeRecord, device host.Device, fsType string,
	again bool) error {
	spec := host.FormatSpec{FSType: fsType, UUID: uuid.NewString(), KeepSpace: rec.Thick}
	if again && rec.Format.UUID != "" {
		spec.UUID = rec.Format.UUID
	}
	program, args := spec.MkfsArgs(again)
	record := blockdev.FormatRecord{State: blockdev.FormatFormatting, FSType: fsType, UUID: spec.UUID, Options: args}
	if err := d.recordFormat(ctx, rec, record); err != nil {
		return err
	}
	work.Doing(ctx, "it is formatted with "+fsType)
	klog.InfoS("Formatting", "volume", rec.ID, "device", device.Path, "program", program, "args", args)
	if err := d.Filesystems.Make(ctx, device.Path, spec, again); err != nil {
		return status.Errorf(codes.Internal, "volume %s: format: %v", rec.ID, err)
	}
	record.State = blockdev.FormatFormatted
	return d.recordFormat(ctx, rec, record)
}

// recordRaw notes that a raw block volume is about to be handed out.
func (d *Attacher) recordRaw(ctx context.Context, rec *blockdev.VolumeRecord) error {
	return d.recordFormat(ctx, rec, blockdev.FormatRecord{State: blockdev.FormatFormatted, FSType: capability.Raw})
}

// recordFormat makes a format record durable, here and in the order of the volume's group, and puts it into rec.
func (d *Attacher) recordFormat(ctx context.Context, rec *blockdev.VolumeRecord, record blockdev.FormatRecord) error {
	if err := d.store.Update(rec, "record the format of", func(r *blockdev.VolumeRecord) {
		r.Format = &record
	}); err != nil {
		return err
	}
	return d.shareFormat(ctx, rec)
}

// shareFormat sends the format record to the sidecar. Staging repeats it for a formatted volume, because the driver may
// have died between the record and the call; a record that is in the order twice does no harm.
func (d *Attacher) shareFormat(ctx context.Context, rec *blockdev.VolumeRecord) error {
	if !rec.Replicable || rec.Format == nil {
		return nil
	}
	data, err := json.Marshal(rec.Format)
	if err != nil {
		return status.Errorf(codes.Internal, "volume %s: encode its format record: %v", rec.ID, err)
	}
	return d.sidecar.RecordFormat(ctx, rec.ID, data)
}

// FSTypeOf is the file system that something has, by its format record, or was made for; empty where neither says.
func FSTypeOf(madeFor string, format *blockdev.FormatRecord) string {
	if format != nil {
		return format.FSType
	}
	return madeFor
}

// FSTypeFor chooses the file system of a volume: what it has, or what is asked for, or what it was made for, or the
// default.
func FSTypeFor(rec *blockdev.VolumeRecord, asked string) (string, error) {
	has := FSTypeOf(rec.FSType, rec.Format)
	switch {
	case asked == "" && has == capability.Raw, asked != "" && has != "" && asked != has:
		return "", status.Errorf(codes.FailedPrecondition, "volume %s has %s, %s is asked for: a volume is formatted "+
			"once; ask for what it has or make a new volume",
			rec.ID, has, capability.FSTypeOrDefault(asked))
	case has != "":
		return has, nil
	}
	return capability.FSTypeOrDefault(asked), nil
}
