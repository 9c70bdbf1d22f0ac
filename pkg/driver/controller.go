package driver

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
)

// TopologyKey is the only key of a volume's accessible topology; its value is the node's id.
const TopologyKey = "topology.slipstream.dev/node"

const (
	maxNameBytes = 128
	// volumeIDPrefix makes a volume id recognisable in logs and mount tables.
	volumeIDPrefix = "vol-"
	// listTokenPrefix is followed by the id of the last volume of the page before. Volumes are listed by id, so a token
	// stays good when volumes come and go between pages.
	listTokenPrefix = "after:"
)

type controllerServer struct {
	csi.UnimplementedControllerServer
	d *Driver
}

func (s *controllerServer) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	var capabilities []*csi.ControllerServiceCapability
	// EXPAND_VOLUME is a capability of the node only: there is nothing to do before the node does it, and csi-resizer
	// then leaves it to kubelet.
	for _, t := range []csi.ControllerServiceCapability_RPC_Type{
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME,
		csi.ControllerServiceCapability_RPC_LIST_VOLUMES,
		csi.ControllerServiceCapability_RPC_GET_CAPACITY,
		csi.ControllerServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
	} {
		capabilities = append(capabilities, &csi.ControllerServiceCapability{Type: &csi.ControllerServiceCapability_Rpc{
			Rpc: &csi.ControllerServiceCapability_RPC{Type: t},
		}})
	}
	return &csi.ControllerGetCapabilitiesResponse{Capabilities: capabilities}, nil
}

// createRequest is a validated CreateVolumeRequest.
type createRequest struct {
	name      string
	params    volumeParameters
	fsType    string // as asked for; empty when the CO leaves it to the driver
	sizeBytes int64
	capacity  *csi.CapacityRange
	own       map[string]string // the parameters under ParameterPrefix, as given
}

func (s *controllerServer) parseCreate(req *csi.CreateVolumeRequest) (createRequest, error) {
	r := createRequest{name: req.GetName(), capacity: req.GetCapacityRange(), own: map[string]string{}}
	switch {
	case r.name == "":
		return r, status.Error(codes.InvalidArgument, "volume name is missing")
	case len(r.name) > maxNameBytes:
		return r, status.Errorf(codes.InvalidArgument, "volume name has %d bytes, more than %d", len(r.name), maxNameBytes)
	case req.GetVolumeContentSource() != nil:
		return r, status.Errorf(codes.InvalidArgument,
			"volume %q: content sources are not supported: neither CLONE_VOLUME nor CREATE_DELETE_SNAPSHOT is among the capabilities", r.name)
	case len(req.GetMutableParameters()) > 0:
		return r, status.Errorf(codes.InvalidArgument,
			"volume %q: mutable parameters are not supported: MODIFY_VOLUME is not among the capabilities", r.name)
	}
	fsType, block, err := parseCapabilities(req.GetVolumeCapabilities())
	if err != nil {
		return r, err
	}
	if r.params, err = parseParameters(req.GetParameters()); err != nil {
		return r, err
	}
	if r.fsType, err = chooseFSType(fsType, r.params.FSType); err != nil {
		return r, err
	}
	least := minBlockSizeBytes
	if !block {
		least = minSizeBytes[orDefault(r.fsType)]
	}
	if r.sizeBytes, err = sizeFor(r.capacity, least); err != nil {
		return r, err
	}
	for key, value := range req.GetParameters() {
		if strings.HasPrefix(key, ParameterPrefix) {
			r.own[key] = value
		}
	}
	if !s.d.accessible(req.GetAccessibilityRequirements()) {
		return r, status.Errorf(codes.ResourceExhausted,
			"volume %q cannot be on any of the nodes asked for: this driver makes volumes on node %q only", r.name, s.d.opts.NodeID)
	}
	if r.params.Replicable && s.d.sidecar == nil {
		return r, errNoSidecar
	}
	return r, nil
}

// chooseFSType brings together what the capability and the StorageClass say.
func chooseFSType(capability, parameter string) (string, error) {
	if parameter != "" {
		if err := checkFSType(parameter); err != nil {
			return "", err
		}
	}
	if capability != "" && parameter != "" && capability != parameter {
		return "", status.Errorf(codes.InvalidArgument, "the capability asks for %s and parameter %s for %s", capability, paramFSType, parameter)
	}
	if capability == "" {
		return parameter, nil
	}
	return capability, nil
}

func orDefault(fsType string) string {
	if fsType == "" {
		return defaultFSType
	}
	return fsType
}

// CreateVolume makes the image and its record, and joins the consistency group that the parameters name.
//
// The volume's id is random and found again by the volume's name. An id derived from the name would come back to life when a
// volume of that name is made a second time, and with it, at the other site, the first one's copy.
func (s *controllerServer) CreateVolume(ctx context.Context, req *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	r, err := s.parseCreate(req)
	if err != nil {
		return nil, err
	}
	done, err := s.d.inflight.begin("name "+r.name, "CreateVolume")
	if err != nil {
		return nil, err
	}
	defer done()

	rec, err := s.findByName(r.name)
	if err != nil {
		return nil, err
	}
	created := rec == nil
	if created {
		if rec, err = s.create(r); err != nil {
			return nil, err
		}
	} else if err := compatible(rec, r); err != nil {
		return nil, err
	}
	// DeleteVolume is guarded by id.
	doneID, err := s.d.inflight.begin(rec.ID, "CreateVolume")
	if err != nil {
		return nil, err
	}
	defer doneID()
	if err := s.d.joinGroup(ctx, rec, r.params); err != nil {
		if created && !mayHaveHappened(err) {
			// The CO takes the error as final and will never ask for the volume's deletion.
			if derr := s.d.destroy(ctx, rec); derr != nil {
				klog.ErrorS(derr, "A volume that could not join its group stays; delete it by its id", "volume", rec.ID, "name", r.name)
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
	recs, err := s.d.records()
	if err != nil {
		return nil, err
	}
	for _, rec := range recs {
		if rec.Name == name {
			return rec, nil
		}
	}
	return nil, nil
}

func (s *controllerServer) create(r createRequest) (*blockdev.VolumeRecord, error) {
	available, err := s.d.availableBytes()
	if err != nil {
		return nil, err
	}
	if r.sizeBytes > available {
		return nil, status.Errorf(codes.ResourceExhausted, "volume %q needs %d bytes, pool %s on node %s has %d",
			r.name, r.sizeBytes, s.d.opts.PoolDir, s.d.opts.NodeID, available)
	}
	rec := blockdev.VolumeRecord{
		ID:               volumeIDPrefix + uuid.NewString(),
		Name:             r.name,
		SizeBytes:        r.sizeBytes,
		Thick:            r.params.Thick,
		Replicable:       r.params.Replicable,
		Remote:           r.params.Remote,
		FSType:           r.fsType,
		Parameters:       r.own,
		CreatedUnixNanos: time.Now().UnixNano(),
	}
	if rec.Replicable {
		rec.Order = blockdev.Order(r.params.Order)
	}
	stored, err := s.d.pool.Create(rec)
	if err != nil {
		return nil, poolError("create", rec.ID, err)
	}
	return stored, nil
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
	if !inRange(rec.SizeBytes, r.capacity) {
		return exists("has %d bytes, outside [%d, %d]", rec.SizeBytes, r.capacity.GetRequiredBytes(), r.capacity.GetLimitBytes())
	}
	if r.fsType != "" && orDefault(rec.FSType) != r.fsType {
		return exists("is for %s, not %s", orDefault(rec.FSType), r.fsType)
	}
	stored, err := parseParameters(ownParameters(rec))
	if err != nil {
		return status.Errorf(codes.Internal, "volume %s: parameters in its record: %s", rec.ID, status.Convert(err).Message())
	}
	if stored.settings() != r.params.settings() {
		return exists("was made with other parameters: %v, now %v", ownParameters(rec), r.own)
	}
	return nil
}

// settings is what two sets of parameters have to agree in to mean the same volume, however they were written.
func (p volumeParameters) settings() volumeParameters {
	p.FSType, p.replicableGiven, p.orderGiven = "", false, false
	if p.JournalFull == "" {
		p.JournalFull = JournalFullTrack
	}
	if p.JournalSizeBytes == 0 {
		p.JournalSizeBytes = defaultJournalSizeBytes
	}
	return p
}

// ownParameters returns the StorageClass parameters a volume was made with, without the driver's own notes.
func ownParameters(rec *blockdev.VolumeRecord) map[string]string {
	own := maps.Clone(rec.Parameters)
	maps.DeleteFunc(own, func(key, _ string) bool { return !strings.HasPrefix(key, ParameterPrefix) })
	return own
}

func (s *controllerServer) DeleteVolume(ctx context.Context, req *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	id := req.GetVolumeId()
	if id == "" {
		return nil, status.Error(codes.InvalidArgument, "volume id is missing")
	}
	done, err := s.d.inflight.begin(id, "DeleteVolume")
	if err != nil {
		return nil, err
	}
	defer done()
	rec, err := s.d.volume(id)
	if status.Code(err) == codes.NotFound {
		return &csi.DeleteVolumeResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	if rec.Secondary && rec.Group != "" {
		return nil, status.Errorf(codes.FailedPrecondition,
			"volume %s is a secondary copy: delete it at the primary site, or promote its group here first (slipctl group promote %s)", id, rec.Group)
	}
	if where, err := s.d.inUse(rec); err != nil {
		return nil, err
	} else if where != "" {
		return nil, status.Errorf(codes.FailedPrecondition, "volume %s is in use: %s; unpublish and unstage it first", id, where)
	}
	if err := s.d.destroy(ctx, rec); err != nil {
		return nil, err
	}
	return &csi.DeleteVolumeResponse{}, nil
}

func (s *controllerServer) ValidateVolumeCapabilities(_ context.Context, req *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	if req.GetVolumeId() == "" {
		return nil, status.Error(codes.InvalidArgument, "volume id is missing")
	}
	if len(req.GetVolumeCapabilities()) == 0 {
		return nil, status.Error(codes.InvalidArgument, "volume capabilities are missing")
	}
	rec, err := s.d.volume(req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	refuse := func(err error) (*csi.ValidateVolumeCapabilitiesResponse, error) {
		return &csi.ValidateVolumeCapabilitiesResponse{Message: status.Convert(err).Message()}, nil
	}
	fsType, block, err := parseCapabilities(req.GetVolumeCapabilities())
	if err != nil {
		return refuse(err)
	}
	if !block {
		if _, err := fsTypeFor(rec, fsType); err != nil {
			return refuse(err)
		}
	}
	if len(req.GetParameters()) > 0 {
		params, err := parseParameters(req.GetParameters())
		if err != nil {
			return refuse(err)
		}
		r := createRequest{name: rec.Name, params: params, own: req.GetParameters()}
		if err := compatible(rec, r); err != nil {
			return refuse(err)
		}
	}
	return &csi.ValidateVolumeCapabilitiesResponse{Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{
		VolumeContext:      req.GetVolumeContext(),
		VolumeCapabilities: req.GetVolumeCapabilities(),
		Parameters:         req.GetParameters(),
	}}, nil
}

func (s *controllerServer) ListVolumes(_ context.Context, req *csi.ListVolumesRequest) (*csi.ListVolumesResponse, error) {
	if req.GetMaxEntries() < 0 {
		return nil, status.Errorf(codes.InvalidArgument, "max_entries %d is negative", req.GetMaxEntries())
	}
	after := ""
	if token := req.GetStartingToken(); token != "" {
		var ok bool
		if after, ok = strings.CutPrefix(token, listTokenPrefix); !ok || after == "" {
			return nil, status.Errorf(codes.Aborted, "starting_token %q is not one of this driver: list from the beginning", token)
		}
	}
	recs, err := s.d.records()
	if err != nil {
		return nil, err
	}
	// A secondary copy is not a volume that the CO could use or made.
	recs = slices.DeleteFunc(recs, func(r *blockdev.VolumeRecord) bool { return r.Secondary || r.ID <= after })
	slices.SortFunc(recs, func(a, b *blockdev.VolumeRecord) int { return strings.Compare(a.ID, b.ID) })

	response := &csi.ListVolumesResponse{}
	if n := int(req.GetMaxEntries()); n > 0 && n < len(recs) {
		recs = recs[:n]
		response.NextToken = listTokenPrefix + recs[n-1].ID
	}
	for _, rec := range recs {
		response.Entries = append(response.Entries, &csi.ListVolumesResponse_Entry{Volume: s.volume(rec)})
	}
	return response, nil
}

func (s *controllerServer) GetCapacity(_ context.Context, req *csi.GetCapacityRequest) (*csi.GetCapacityResponse, error) {
	least := minBlockSizeBytes
	if len(req.GetVolumeCapabilities()) > 0 {
		fsType, block, err := parseCapabilities(req.GetVolumeCapabilities())
		if err != nil {
			return nil, err
		}
		if !block {
			least = minSizeBytes[orDefault(fsType)]
		}
	}
	params, err := parseParameters(req.GetParameters())
	if err != nil {
		return nil, err
	}
	elsewhere := req.GetAccessibleTopology() != nil && !s.d.isHere(req.GetAccessibleTopology())
	if elsewhere || (params.Replicable && s.d.sidecar == nil) {
		return &csi.GetCapacityResponse{}, nil
	}
	available, err := s.d.availableBytes()
	if err != nil {
		return nil, err
	}
	return &csi.GetCapacityResponse{
		AvailableCapacity: available,
		MaximumVolumeSize: wrapperspb.Int64(available),
		MinimumVolumeSize: wrapperspb.Int64(least),
	}, nil
}

func (s *controllerServer) volume(rec *blockdev.VolumeRecord) *csi.Volume {
	return &csi.Volume{
		VolumeId:           rec.ID,
		CapacityBytes:      rec.SizeBytes,
		AccessibleTopology: []*csi.Topology{s.d.topology()},
	}
}

func (d *Driver) topology() *csi.Topology {
	return &csi.Topology{Segments: map[string]string{TopologyKey: d.opts.NodeID}}
}

// isHere reports whether this node is in a topology. Segments of other drivers do not matter.
func (d *Driver) isHere(t *csi.Topology) bool {
	node, ok := t.GetSegments()[TopologyKey]
	return !ok || node == d.opts.NodeID
}

func (d *Driver) accessible(r *csi.TopologyRequirement) bool {
	return len(r.GetRequisite()) == 0 || slices.ContainsFunc(r.GetRequisite(), d.isHere)
}

// volume returns a volume's record; an error is a status error, NotFound where there is no such volume.
func (d *Driver) volume(id string) (*blockdev.VolumeRecord, error) {
	rec, err := d.pool.Get(id)
	if err != nil {
		return nil, poolError("read", id, err)
	}
	return rec, nil
}

// records returns the records of all volumes that have a readable one. The others are logged and left out: one damaged
// record must not keep all other volumes from being made, listed and deleted.
func (d *Driver) records() ([]*blockdev.VolumeRecord, error) {
	recs, err := d.pool.List()
	if err != nil && recs == nil {
		return nil, status.Errorf(codes.Internal, "list the volumes of pool %s: %v", d.opts.PoolDir, err)
	}
	if err != nil {
		klog.ErrorS(err, "Some volume records cannot be read", "pool", d.opts.PoolDir)
	}
	return recs, nil
}

// poolError gives an error of the pool the code that a CO acts on.
func poolError(doing, id string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return status.Errorf(codes.NotFound, "volume %q: not in the pool", id)
	case errors.Is(err, syscall.ENOSPC):
		return status.Errorf(codes.ResourceExhausted, "%s volume %q: %v; free space in the pool or add some", doing, id, err)
	}
	return status.Errorf(codes.Internal, "%s volume %q: %v", doing, id, err)
}
