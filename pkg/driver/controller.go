package driver

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/attach"
	"github.com/slipstream-storage/slipstream/pkg/driver/capability"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
	"github.com/slipstream-storage/slipstream/pkg/driver/replicator"
	"github.com/slipstream-storage/slipstream/pkg/driver/snapshots"
	"github.com/slipstream-storage/slipstream/pkg/driver/store"
	"github.com/slipstream-storage/slipstream/pkg/driver/views"
	"github.com/slipstream-storage/slipstream/pkg/plugin"
	"github.com/slipstream-storage/slipstream/pkg/untrusted"
)

const (
	maxNameBytes = 128
	// volumeIDPrefix makes a volume id recognisable in logs and mount tables.
	volumeIDPrefix = "vol-"
)

type controllerServer struct {
	csi.UnimplementedControllerServer
	d *Driver
}

func (s *controllerServer) ControllerGetCapabilities(
	context.Context, *csi.ControllerGetCapabilitiesRequest,
) (*csi.ControllerGetCapabilitiesResponse, error) {
	return plugin.ControllerCapabilities(), nil
}

// createRequest is a validated CreateVolumeRequest.
type createRequest struct {
	name      string
	params    parameter.Volume // of the class alone, which a repetition is compared by
	effective parameter.Volume // with the mutable parameters over them
	fsType    string           // as asked for; empty when the CO leaves it to the driver
	sizeBytes int64
	capacity  *csi.CapacityRange
	own       map[string]string // the parameters under ParameterPrefix, as given
	mutable   map[string]string
	claim     *blockdev.ClaimRecord

	block     bool  // raw block only
	least     int64 // bytes
	source    *blockdev.ContentSource
	elsewhere bool // the CO names nodes
}

func (s *controllerServer) parseCreate(ctx context.Context, req *csi.CreateVolumeRequest) (createRequest, error) {
	r := createRequest{name: req.GetName(), capacity: req.GetCapacityRange()}
	switch {
	case r.name == "":
		return r, status.Error(codes.InvalidArgument, "volume name is missing")
	}
	if err := untrusted.CheckCSIName("volume name", r.name, maxNameBytes); err != nil {
		return r, status.Error(codes.InvalidArgument, err.Error())
	}
	fsType, block, err := capability.ParseAll(req.GetVolumeCapabilities())
	if err != nil {
		return r, err
	}
	parameters, err := parameter.CreationOfCall(ctx, req)
	if err != nil {
		return r, err
	}
	r.params, r.effective = parameters.Class, parameters.Effective
	if r.fsType, err = capability.ChooseFSType(fsType, r.params.FSType); err != nil {
		return r, err
	}
	r.claim = parameter.ClaimOf(req.GetParameters(), block)
	if err := r.claim.Validate(); err != nil {
		return r, status.Errorf(codes.InvalidArgument, "volume %q: parameters of csi-provisioner: %v", r.name, err)
	}
	r.block, r.least = block, capability.MinBlockSizeBytes
	if !block {
		r.least = capability.MinSizeBytes[capability.FSTypeOrDefault(r.fsType)]
	}
	if r.sizeBytes, err = capability.SizeFor(r.capacity, r.least); err != nil {
		return r, err
	}
	if r.source, err = parseContentSource(req.GetVolumeContentSource()); err != nil {
		return r, err
	}
	r.elsewhere = len(req.GetAccessibilityRequirements().GetRequisite()) > 0
	r.own, r.mutable = parameter.Own(parameters.Given), req.GetMutableParameters()
	if !s.d.accessible(req.GetAccessibilityRequirements()) {
		return r, status.Errorf(codes.ResourceExhausted,
			"volume %q cannot be on any of the nodes asked for: this driver makes volumes on node %q only", r.name,
			s.d.opts.NodeID)
	}
	if r.effective.Replicable && s.d.sidecar == nil {
		return r, replicator.ErrNone
	}
	return r, nil
}

// CreateVolume makes the image and its record, and joins the consistency group that the parameters name.
//
// The volume's id is random and found again by the volume's name. An id derived from the name would come back to life
// when a volume of that name is made a second time, and with it, at the other site, the first one's copy.
func (s *controllerServer) CreateVolume(ctx context.Context,
	req *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	r, err := s.parseCreate(ctx, req)
	if err != nil {
		return nil, err
	}
	done, err := s.d.guards.Enter("name "+r.name, "CreateVolume")
	if err != nil {
		return nil, err
	}
	defer done()

	rec, err := s.findByName(r.name)
	if err != nil {
		return nil, err
	}
	if r.source != nil && views.Is(r.source.SnapshotID) && (rec == nil || rec.View != nil) {
		return s.createFromView(r, rec)
	}
	made := r.effective
	created := rec == nil
	if created {
		if rec, err = s.create(r); err != nil {
			return nil, err
		}
	} else {
		if err := compatible(rec, r); err != nil {
			return nil, err
		}
		// By its record, which says what was asked for first: an earlier call may have come to the group without an answer.
		if made, err = sameCreation(rec, r); err != nil {
			return nil, err
		}
	}
	// DeleteVolume is guarded by id.
	doneID, err := s.d.guards.Enter(rec.ID, "CreateVolume")
	if err != nil {
		return nil, err
	}
	defer doneID()
	if rec.Source != nil {
		created = created || rec.State == blockdev.VolumeCreating // no call has succeeded yet
		err = s.d.snapshots.Fill(ctx, rec)
	}
	if err == nil && rec.Parameters[parameter.NoteModified] != "" {
		return &csi.CreateVolumeResponse{Volume: s.volume(rec)}, nil
	}
	if err == nil {
		err = s.d.groups.Join(ctx, rec, made)
	}
	if err != nil {
		if created && !mayHaveHappened(err) {
			// The CO takes the error as final and will never ask for the volume's deletion.
			if derr := s.d.destroy(ctx, rec); derr != nil {
				klog.ErrorS(derr, "A volume that could not be completed stays; delete it by its id", "volume", rec.ID, "name",
					r.name)
			}
		}
		return nil, err
	}
	return &csi.CreateVolumeResponse{Volume: s.volume(rec)}, nil
}

// mayHaveHappened reports errors after which the CO asks again, as external-provisioner does.
func mayHaveHappened(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.Aborted, codes.Canceled, codes.DeadlineExceeded:
		return true
	}
	return false
}

func (s *controllerServer) findByName(name string) (*blockdev.VolumeRecord, error) {
	recs, err := s.d.store.VolumesNamed(name)
	if err != nil || len(recs) == 0 {
		return nil, err
	}
	return recs[0], nil
}

func (s *controllerServer) create(r createRequest) (*blockdev.VolumeRecord, error) {
	var c snapshots.Content
	if r.source != nil {
		var err error
		if c, err = s.d.snapshots.Content(r.source, r.elsewhere); err == nil {
			err = r.fit(c)
		}
		if err != nil {
			return nil, err
		}
	}
	rec := blockdev.VolumeRecord{
		ID:               volumeIDPrefix + uuid.NewString(),
		Name:             r.name,
		SizeBytes:        r.sizeBytes,
		Thick:            r.effective.Thick,
		Replicable:       r.effective.Replicable,
		Remote:           r.effective.Remote,
		FSType:           r.fsType,
		Parameters:       r.own,
		Claim:            r.claim,
		CreatedUnixNanos: time.Now().UnixNano(),

		MutableParameters: r.mutable,
	}
	if rec.Replicable {
		rec.Order = blockdev.Order(r.effective.Order)
		rec.IOBytesPerSecond, rec.IOPS = r.effective.IOBytesPerSecond, r.effective.IOPS
	}
	if r.source != nil {
		rec.State, rec.Source, rec.BlockSizeBytes = blockdev.VolumeCreating, r.source, c.BlockSizeBytes
	}
	release, err := s.d.space.ReserveSpace(&rec, 0, r.effective.JournalOf(rec.ID))
	if err != nil {
		return nil, err
	}
	defer release()
	stored, err := s.d.store.Pool.Create(rec)
	if err != nil {
		return nil, store.VolumeError("create", rec.ID, err)
	}
	return stored, nil
}

// fit compares a source with the request, and chooses the size and the file system.
func (r *createRequest) fit(c snapshots.Content) (err error) {
	// As rounded up: see leastRequest.
	if required := r.capacity.GetRequiredBytes(); required > 0 && r.sizeBytes < c.SizeBytes {
		return status.Errorf(codes.OutOfRange, "volume %q: %s are asked for, its source has %d: a volume is not "+
			"smaller than its source", r.name, words.Count(required, "byte"), c.SizeBytes)
	}
	capacity := &csi.CapacityRange{RequiredBytes: max(r.capacity.GetRequiredBytes(), c.SizeBytes),
		LimitBytes: r.capacity.GetLimitBytes()}
	if limit := capacity.GetLimitBytes(); limit > 0 && limit < c.SizeBytes {
		return status.Errorf(codes.OutOfRange, "volume %q: limit_bytes is %d, its source has %s", r.name, limit,
			words.Count(c.SizeBytes, "byte"))
	}
	if r.sizeBytes, err = capability.SizeFor(capacity, r.least); err != nil {
		return err
	}
	has := attach.FSTypeOf(c.FsType, c.Format)
	switch {
	case r.block || has == "":
	case has == capability.Raw:
		return status.Errorf(codes.InvalidArgument, "volume %q: its source is a raw block volume, and is not formatted: "+
			"ask for a raw block volume", r.name)
	case r.fsType != "" && r.fsType != has:
		return status.Errorf(codes.InvalidArgument, "volume %q: its source has %s, %s is asked for: a copy has the file "+
			"system of its source", r.name, has, r.fsType)
	}
	if r.fsType == "" && has != capability.Raw {
		r.fsType = has
	}
	return nil
}

// compatible reports, as AlreadyExists, how an existing volume of the same name differs from what is asked for.
func compatible(rec *blockdev.VolumeRecord, r createRequest) error {
	exists := func(format string, args ...any) error {
		args = append([]any{r.name, rec.ID}, args...)
		return status.Errorf(codes.AlreadyExists, "volume %q exists (%s) and "+format+"; choose another name", args...)
	}
	if rec.Secondary {
		return exists("is a secondary copy of another site's volume")
	}
	if !capability.InRange(rec.SizeBytes, r.capacity) {
		return exists("has %s; asked for: at least %d%s", words.Count(rec.SizeBytes, "byte"),
			r.capacity.GetRequiredBytes(), atMost(r.capacity.GetLimitBytes()))
	}
	if r.fsType != "" && capability.FSTypeOrDefault(rec.FSType) != r.fsType {
		return exists("is for %s, not %s", capability.FSTypeOrDefault(rec.FSType), r.fsType)
	}
	if describe(rec.Source) != describe(r.source) {
		return exists("was made from %s, not from %s", describe(rec.Source), describe(r.source))
	}
	stored, err := parameter.ParseRecorded(rec, parameter.OwnRecorded(rec))
	if err != nil {
		return err
	}
	if stored.Settings() != r.params.Settings() {
		recorded := parameter.OwnRecorded(rec)
		return exists("was made with other parameters: with %s, now with %s", parametersText(recorded, r.own),
			parametersText(r.own, recorded))
	}
	return nil
}

// atMost says the limit of a size, if there is one.
func atMost(limit int64) string {
	if limit == 0 {
		return ""
	}
	return fmt.Sprintf(" and at most %d", limit)
}

// parametersText writes parameters as a person gives them: without the prefix, in order, and only those in which the
// two sets differ.
func parametersText(of, other map[string]string) string {
	var list []string
	for key, value := range of {
		if v, there := other[key]; !there || v != value {
			list = append(list, strings.TrimPrefix(key, parameter.Prefix)+"="+value)
		}
	}
	slices.Sort(list)
	return cmp.Or(strings.Join(list, " "), "nothing besides")
}

func (s *controllerServer) DeleteVolume(ctx context.Context,
	req *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	id := req.GetVolumeId()
	done, err := s.d.beginCall("DeleteVolume", id)
	if err != nil {
		return nil, err
	}
	defer done()
	rec, err := s.d.store.Volume(id)
	if status.Code(err) == codes.NotFound {
		_, devices, err := s.d.attachments.Remains(id, false)
		if err == nil && len(devices) > 0 {
			err = attach.ImageGone(id, devices[0])
		}
		if err != nil {
			return nil, err
		}
		return &csi.DeleteVolumeResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	if following, err := s.d.groups.Follows(ctx, rec); err != nil {
		return nil, err
	} else if following {
		// The copy may be the last one. It goes when its primary takes the volume out of the group, or by hand (slipctl
		// copy delete).
		if err := s.d.store.Update(rec, "update", func(r *blockdev.VolumeRecord) { r.Unwanted = true }); err != nil {
			return nil, err
		}
		klog.InfoS("A copy was deleted here; it stays until its primary deletes the volume", "volume", id, "group",
			rec.Group, "peer", rec.Remote)
		return &csi.DeleteVolumeResponse{}, nil
	}
	if where, err := s.d.attachments.InUse(rec); err != nil {
		return nil, err
	} else if where != "" {
		return nil, status.Errorf(codes.FailedPrecondition, "volume %s is in use: %s; unpublish and unstage it first", id,
			where)
	}
	if why := s.d.tasks.WhyRead(id); why != "" {
		return nil, status.Errorf(codes.Aborted, "volume %s: %s; it can be deleted when that is done: call again", id, why)
	}
	if err := s.d.destroy(ctx, rec); err != nil {
		return nil, err
	}
	return &csi.DeleteVolumeResponse{}, nil
}

func (s *controllerServer) ValidateVolumeCapabilities(ctx context.Context,
	req *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	if req.GetVolumeId() == "" {
		return nil, status.Error(codes.InvalidArgument, "volume id is missing")
	}
	if len(req.GetVolumeCapabilities()) == 0 {
		return nil, status.Error(codes.InvalidArgument, "volume capabilities are missing")
	}
	rec, err := s.d.store.Volume(req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	refuse := func(err error) (*csi.ValidateVolumeCapabilitiesResponse, error) {
		return &csi.ValidateVolumeCapabilitiesResponse{Message: status.Convert(err).Message()}, nil
	}
	fsType, block, err := capability.ParseAll(req.GetVolumeCapabilities())
	if err != nil {
		return refuse(err)
	}
	if !block {
		if _, err := attach.FSTypeFor(rec, fsType); err != nil {
			return refuse(err)
		}
	}
	if len(req.GetParameters()) > 0 {
		parameters, err := parameter.ExpandParameters(req.GetParameters())
		if err != nil {
			return refuse(err)
		}
		params, err := parameter.Parse(parameters)
		if err != nil {
			return refuse(err)
		}
		r := createRequest{name: rec.Name, params: params, own: parameters}
		if err := compatible(rec, r); err != nil {
			return refuse(err)
		}
	}
	if len(req.GetMutableParameters()) > 0 {
		err := s.d.groups.CheckMutable(ctx, rec, req.GetMutableParameters())
		switch {
		case status.Code(err) == codes.InvalidArgument:
			return refuse(err)
		case err != nil:
			return nil, err
		}
	}
	return &csi.ValidateVolumeCapabilitiesResponse{Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{
		VolumeContext:      req.GetVolumeContext(),
		VolumeCapabilities: req.GetVolumeCapabilities(),
		Parameters:         req.GetParameters(),
		MutableParameters:  req.GetMutableParameters(),
	}}, nil
}

func (s *controllerServer) ListVolumes(_ context.Context,
	req *csi.ListVolumesRequest) (*csi.ListVolumesResponse, error) {
	page, err := parsePage(req.GetMaxEntries(), req.GetStartingToken())
	if err != nil {
		return nil, err
	}
	recs, err := s.d.store.Volumes()
	if err != nil {
		return nil, err
	}
	// The CO did not make a copy that is in a group and cannot use it. It has not heard of a volume without content yet.
	// A copy in no group is listed: only its deletion gives its space back.
	recs = slices.DeleteFunc(recs, func(r *blockdev.VolumeRecord) bool {
		return r.Secondary && r.Group != "" || r.State == blockdev.VolumeCreating || r.ID <= page.after
	})
	slices.SortFunc(recs, func(a, b *blockdev.VolumeRecord) int { return strings.Compare(a.ID, b.ID) })

	response := &csi.ListVolumesResponse{}
	for _, rec := range recs {
		if n := len(response.Entries); page.full(n) {
			response.NextToken = page.token(response.Entries[n-1].GetVolume().GetVolumeId())
			break
		}
		response.Entries = append(response.Entries, &csi.ListVolumesResponse_Entry{Volume: s.volume(rec)})
	}
	return response, nil
}

// ControllerGetVolume returns a volume, or NotFound. A secondary copy is returned too: it has an id that the CO of the
// other site knows.
func (s *controllerServer) ControllerGetVolume(_ context.Context,
	req *csi.ControllerGetVolumeRequest) (*csi.ControllerGetVolumeResponse, error) {
	if req.GetVolumeId() == "" {
		return nil, status.Error(codes.InvalidArgument, "volume id is missing")
	}
	rec, err := s.d.store.Volume(req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	// Nodes that a volume is published on are for plugins with LIST_VOLUMES_PUBLISHED_NODES; conditions have calls of
	// their own.
	return &csi.ControllerGetVolumeResponse{Volume: s.volume(rec),
		Status: &csi.ControllerGetVolumeResponse_VolumeStatus{}}, nil
}

func (s *controllerServer) GetCapacity(_ context.Context,
	req *csi.GetCapacityRequest) (*csi.GetCapacityResponse, error) {
	least := capability.MinBlockSizeBytes
	if len(req.GetVolumeCapabilities()) > 0 {
		fsType, block, err := capability.ParseAll(req.GetVolumeCapabilities())
		if err != nil {
			return nil, err
		}
		if !block {
			least = capability.MinSizeBytes[capability.FSTypeOrDefault(fsType)]
		}
	}
	params, err := parameter.Parse(req.GetParameters())
	if err != nil {
		return nil, err
	}
	elsewhere := req.GetAccessibleTopology() != nil && !s.d.isHere(req.GetAccessibleTopology())
	if elsewhere || (params.Replicable && s.d.sidecar == nil) {
		return &csi.GetCapacityResponse{}, nil
	}
	available, most, err := s.d.space.Room(params)
	if err != nil {
		return nil, err
	}
	return &csi.GetCapacityResponse{
		AvailableCapacity: available,
		MaximumVolumeSize: wrapperspb.Int64(most),
		MinimumVolumeSize: wrapperspb.Int64(least),
	}, nil
}

func (s *controllerServer) volume(rec *blockdev.VolumeRecord) *csi.Volume {
	return &csi.Volume{
		VolumeId:           rec.ID,
		CapacityBytes:      rec.SizeBytes,
		ContentSource:      contentSource(rec.Source),
		AccessibleTopology: []*csi.Topology{s.d.topology()},
	}
}
