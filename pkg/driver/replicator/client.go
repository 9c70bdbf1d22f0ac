// Package replicator is the driver's client of the replicator, which runs beside it as a sidecar. It sets the deadlines
// and turns the replicator's errors into those of CSI calls. What is asked of the replicator, and when, is decided by
// the packages that use it.
package replicator

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/internal/sidecarclient"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/host"
)

const (
	sidecarCallTimeout = 30 * time.Second
	sidecarPatience    = 3 * time.Second
	// sidecarFlushTimeout is for calls that may have to make a journal's worth of writes durable.
	sidecarFlushTimeout = 2 * time.Minute
)

// errNoSidecar is returned for replicable volumes by a driver that runs alone.
var ErrNone = status.Error(codes.FailedPrecondition,
	"the volume is replicable, but this driver runs without a replicator: start the replicator on the same pool and "+
		"the driver with --sidecar")

// Client is the replicator, as the driver uses it. Its errors are status errors that a CSI call can return: they
// keep the codes that mean the same to a CO (Unavailable, Aborted, ResourceExhausted, FailedPrecondition) and turn
// those that would mislead it (NotFound and AlreadyExists speak of groups here, of volumes there) into
// FailedPrecondition.
//
// It is safe for concurrent use.
type Client struct {
	endpoint string
	conn     *grpc.ClientConn
	client   sidecarpb.SidecarClient
	Patience time.Duration // of Await
}

// Dial prepares the connection; it is made, and made again, when calls need it.
func Dial(endpoint string) (*Client, error) {
	conn, err := grpc.NewClient(endpoint, append(sidecarclient.DialOptions(),
		grpc.WithChainUnaryInterceptor(host.KillStepCalls()...),
		grpc.WithTransportCredentials(insecure.NewCredentials()), // a Unix socket: the file's permissions are the security
		grpc.WithConnectParams(grpc.ConnectParams{
			// The default waits up to two minutes after failures; a replicator that was restarted is back in one second.
			Backoff: backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2,
				MaxDelay: time.Second},
			MinConnectTimeout: time.Second,
		}))...)
	if err != nil {
		return nil, fmt.Errorf("sidecar endpoint %q: %w", endpoint, err)
	}
	return &Client{endpoint: endpoint, conn: conn, client: sidecarpb.NewSidecarClient(conn), Patience: sidecarPatience},
		nil
}

func (s *Client) Close() error { return s.conn.Close() }

// API is the replicator's service as it is, with its own codes, for callers that do not answer CSI calls.
func (s *Client) API() sidecarpb.SidecarClient { return s.client }

// Await returns nil as soon as the replicator answers and can serve, and an error after its patience: one that was
// killed is back within a second or two, and the CO's next call would come much later.
func (s *Client) Await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.Patience)
	defer cancel()
	return s.Ready(ctx, grpc.WaitForReady(true))
}

// Need returns a status error unless there is a replicator and it answers now. s may be nil.
func (s *Client) Need(ctx context.Context) error {
	if s == nil {
		return ErrNone
	}
	return s.Await(ctx)
}

// Ready returns nil when the replicator answers and can serve.
func (s *Client) Ready(ctx context.Context, options ...grpc.CallOption) error {
	response, err := s.client.Probe(ctx, &sidecarpb.ProbeRequest{}, options...)
	if err != nil {
		return s.failure("Probe", "", err)
	}
	if !response.GetReady() {
		return status.Errorf(codes.Unavailable, "the replicator at %s is starting; call again", s.endpoint)
	}
	return nil
}

// Attachment is what a replicable volume's loop device is put over.
type Attachment struct {
	Path           string
	DirectIO       bool
	BlockSizeBytes int
}

func (s *Client) AttachVolume(ctx context.Context, volumeID string) (Attachment, error) {
	ctx, cancel := context.WithTimeout(ctx, sidecarFlushTimeout)
	defer cancel()
	response, err := s.client.AttachVolume(ctx, &sidecarpb.AttachVolumeRequest{VolumeId: volumeID})
	if err != nil {
		return Attachment{}, s.failure("AttachVolume", volumeID, err)
	}
	return Attachment{Path: response.GetPath(), DirectIO: response.GetDirectIo(),
		BlockSizeBytes: int(response.GetBlockSizeBytes())}, nil
}

// AttachView has the volumes of a view served, and returns the one that a volume shows.
func (s *Client) AttachView(ctx context.Context, rec *blockdev.VolumeRecord) (Attachment, error) {
	ctx, cancel := context.WithTimeout(ctx, sidecarCallTimeout)
	defer cancel()
	ref := rec.View
	view, err := s.client.AttachView(ctx, &sidecarpb.AttachViewRequest{Group: ref.Group, Name: ref.Name})
	if err != nil {
		return Attachment{}, s.failure("AttachView", ref.Group+"/"+ref.Name, err)
	}
	for _, v := range view.GetVolumes() {
		if v.GetCsiVolumeId() == rec.ID {
			return Attachment{Path: v.GetPath(), BlockSizeBytes: int(v.GetBlockSizeBytes())}, nil
		}
	}
	return Attachment{}, status.Errorf(codes.FailedPrecondition, "volume %s shows a view that was deleted: there is "+
		"another view %s of group %s now; delete the volume", rec.ID, ref.Name, ref.Group)
}

// DetachVolume succeeds for a volume that is not attached or not known.
func (s *Client) DetachVolume(ctx context.Context, volumeID string) error {
	ctx, cancel := context.WithTimeout(ctx, sidecarFlushTimeout)
	defer cancel()
	_, err := s.client.DetachVolume(ctx, &sidecarpb.DetachVolumeRequest{VolumeId: volumeID})
	return s.failure("DetachVolume", volumeID, ignoreNotFound(err))
}

// RecordFormat puts the format record, as JSON, into the order of the volume's group.
func (s *Client) RecordFormat(ctx context.Context, volumeID string, formatJSON []byte) error {
	ctx, cancel := context.WithTimeout(ctx, sidecarCallTimeout)
	defer cancel()
	_, err := s.client.RecordFormat(ctx, &sidecarpb.RecordFormatRequest{VolumeId: volumeID, FormatJson: formatJSON})
	return s.failure("RecordFormat", volumeID, err)
}

// ResizeVolume grows the image at both sites and returns the size it has now.
func (s *Client) ResizeVolume(ctx context.Context, volumeID string, sizeBytes int64) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, sidecarCallTimeout)
	defer cancel()
	response, err := s.client.ResizeVolume(ctx, &sidecarpb.ResizeVolumeRequest{VolumeId: volumeID, SizeBytes: sizeBytes})
	if err != nil {
		return 0, s.failure("ResizeVolume", volumeID, err)
	}
	return response.GetSizeBytes(), nil
}

// Group returns a group's status, or nil when there is none of that name.
func (s *Client) Group(ctx context.Context, name string) (*sidecarpb.GroupStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, sidecarCallTimeout)
	defer cancel()
	response, err := s.client.ListGroups(ctx, &sidecarpb.ListGroupsRequest{Name: name})
	if err := ignoreNotFound(err); err != nil {
		return nil, s.failure("ListGroups", name, err)
	}
	for _, g := range response.GetGroups() {
		if g.GetName() == name {
			return g, nil
		}
	}
	return nil, nil
}

// Groups returns the status of all groups, those that could not be opened included.
func (s *Client) Groups(ctx context.Context) ([]*sidecarpb.GroupStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, sidecarCallTimeout)
	defer cancel()
	response, err := s.client.ListGroups(ctx, &sidecarpb.ListGroupsRequest{})
	if err != nil {
		return nil, s.failure("ListGroups", "", err)
	}
	return response.GetGroups(), nil
}

// CreateGroup succeeds when the group exists with the same properties.
func (s *Client) CreateGroup(ctx context.Context, request *sidecarpb.CreateGroupRequest) error {
	ctx, cancel := context.WithTimeout(ctx, sidecarCallTimeout)
	defer cancel()
	_, err := s.client.CreateGroup(ctx, request)
	return s.failure("CreateGroup", request.GetName(), err)
}

// DeleteGroup deletes a group that has no volumes; it succeeds when there is no such group.
func (s *Client) DeleteGroup(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, sidecarCallTimeout)
	defer cancel()
	_, err := s.client.DeleteGroup(ctx, &sidecarpb.DeleteGroupRequest{Name: name})
	return s.failure("DeleteGroup", name, ignoreNotFound(err))
}

// JoinGroup puts a volume into a group, and makes the group if asked to. It returns the group that does not fit, with
// nothing changed, or nil. It waits for a replicator that is starting, as Await does, without a call of its own.
func (s *Client) JoinGroup(ctx context.Context, request *sidecarpb.JoinGroupRequest) (*sidecarpb.GroupStatus, error) {
	object := request.GetGroup() + "/" + request.GetVolumeId()
	if err := s.awaitConnection(ctx); err != nil {
		return nil, s.failure("JoinGroup", object, err)
	}
	ctx, cancel := context.WithTimeout(ctx, sidecarCallTimeout)
	defer cancel()
	response, err := s.client.JoinGroup(ctx, request, grpc.WaitForReady(true))
	if status.Code(err) == codes.NotFound && !request.GetCreate() {
		return nil, status.Errorf(codes.Aborted, "group %s was deleted while volume %s was joining it; call again",
			request.GetGroup(), request.GetVolumeId())
	}
	return response.GetUnfit(), s.failure("JoinGroup", object, err)
}

// awaitConnection returns nil when there is a connection to the replicator, and an error after its patience.
func (s *Client) awaitConnection(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, s.Patience)
	defer cancel()
	for {
		state := s.conn.GetState()
		if state == connectivity.Ready {
			return nil
		}
		if state == connectivity.Idle {
			s.conn.Connect()
		}
		if !s.conn.WaitForStateChange(ctx, state) {
			return status.Errorf(codes.Unavailable, "no connection (%v): %v", s.conn.GetState(), ctx.Err())
		}
	}
}

// MoveVolume puts a volume into a group, out of the one that it is in.
func (s *Client) MoveVolume(ctx context.Context, group, volumeID string) error {
	ctx, cancel := context.WithTimeout(ctx, sidecarFlushTimeout)
	defer cancel()
	_, err := s.client.AddVolume(ctx, &sidecarpb.AddVolumeRequest{Group: group, VolumeId: volumeID, Move: true})
	return s.failure("AddVolume", group+"/"+volumeID, err)
}

// ModifyGroup changes what is given of a group's settings.
func (s *Client) ModifyGroup(ctx context.Context, request *sidecarpb.ModifyGroupRequest) error {
	ctx, cancel := context.WithTimeout(ctx, sidecarCallTimeout)
	defer cancel()
	_, err := s.client.ModifyGroup(ctx, request)
	return s.failure("ModifyGroup", request.GetName(), err)
}

// ModifyVolume changes what is given of a volume's settings.
func (s *Client) ModifyVolume(ctx context.Context, request *sidecarpb.ModifyVolumeRequest) error {
	ctx, cancel := context.WithTimeout(ctx, sidecarCallTimeout)
	defer cancel()
	_, err := s.client.ModifyVolume(ctx, request)
	return s.failure("ModifyVolume", request.GetVolumeId(), err)
}

// RemoveVolume succeeds for a volume that is not in the group.
func (s *Client) RemoveVolume(ctx context.Context, group, volumeID string) error {
	ctx, cancel := context.WithTimeout(ctx, sidecarFlushTimeout)
	defer cancel()
	_, err := s.client.RemoveVolume(ctx, &sidecarpb.RemoveVolumeRequest{Group: group, VolumeId: volumeID})
	return s.failure("RemoveVolume", group+"/"+volumeID, ignoreNotFound(err))
}

// CutGroup takes snapshots of volumes of a group at one ordinal, or at an epoch if one is given. targets are the
// volumes' ids by those of the snapshots.
func (s *Client) CutGroup(ctx context.Context, group, at string, targets map[string]string) error {
	ctx, cancel := context.WithTimeout(ctx, sidecarFlushTimeout)
	defer cancel()
	request := &sidecarpb.CutGroupRequest{Group: group, Epoch: at}
	for snapshotID, volumeID := range targets {
		request.Targets = append(request.Targets, &sidecarpb.CutTarget{VolumeId: volumeID, SnapshotId: snapshotID})
	}
	_, err := s.client.CutGroup(ctx, request)
	return s.failure("CutGroup", group, err)
}

// FixGroup keeps the whole group of a volume at one epoch for half a minute, or until ReleaseGroup.
func (s *Client) FixGroup(ctx context.Context, volumeID string) (at, holder string, err error) {
	ctx, cancel := context.WithTimeout(ctx, sidecarFlushTimeout)
	defer cancel()
	fixed, err := s.client.FixGroup(ctx, &sidecarpb.FixGroupRequest{VolumeId: volumeID})
	return fixed.GetEpoch(), fixed.GetHolder(), s.failure("FixGroup", volumeID, err)
}

// ReleaseGroup ends what FixGroup began. Without it, that ends by itself.
func (s *Client) ReleaseGroup(ctx context.Context, volumeID, holder string) {
	ctx, cancel := context.WithTimeout(ctx, sidecarCallTimeout)
	defer cancel()
	_, err := s.client.ReleaseGroup(ctx, &sidecarpb.ReleaseGroupRequest{VolumeId: volumeID, Holder: holder})
	if err != nil {
		klog.V(2).InfoS("A group that is kept at an epoch goes on by itself", "volume", volumeID, "reason", err)
	}
}

// ReleaseCut ends what a group does for a snapshot that is about to be deleted; one that it does not know is a success.
func (s *Client) ReleaseCut(ctx context.Context, snapshotID string) error {
	ctx, cancel := context.WithTimeout(ctx, sidecarFlushTimeout)
	defer cancel()
	_, err := s.client.ReleaseCut(ctx, &sidecarpb.ReleaseCutRequest{SnapshotId: snapshotID})
	return s.failure("ReleaseCut", snapshotID, err)
}

// Forward makes a call of the replicator's service for another caller, which gets the answer and the error as they are.
func (s *Client) Forward(ctx context.Context, path string, request, response proto.Message) error {
	ctx, cancel := context.WithTimeout(ctx, sidecarFlushTimeout)
	defer cancel()
	return s.conn.Invoke(ctx, path, request, response)
}

func ignoreNotFound(err error) error {
	if status.Code(err) == codes.NotFound {
		return nil
	}
	return err
}

func (s *Client) failure(call, object string, err error) error {
	if err == nil {
		return nil
	}
	what := "the replicator's " + call
	if object != "" {
		what += " of " + object
	}
	switch code := status.Code(err); {
	case code == codes.Unavailable || code == codes.DeadlineExceeded || errors.Is(err, context.DeadlineExceeded):
		return status.Errorf(codes.Unavailable, "%s got no answer from %s: %s; see that the replicator runs, and call again",
			what, s.endpoint, status.Convert(err).Message())
	case code == codes.Aborted || code == codes.ResourceExhausted || code == codes.FailedPrecondition ||
		code == codes.Canceled:
		return status.Errorf(code, "%s: %s", what, status.Convert(err).Message())
	case code == codes.NotFound || code == codes.AlreadyExists || code == codes.InvalidArgument:
		return status.Errorf(codes.FailedPrecondition, "%s was refused: %s", what, status.Convert(err).Message())
	case code == codes.Unimplemented:
		return status.Errorf(codes.FailedPrecondition, "%s is unknown to it: driver and replicator of a node have to be of "+
			"one release; start both again from the same one", what)
	default:
		return status.Errorf(codes.Internal, "%s: %s", what, status.Convert(err).Message())
	}
}
