package driver

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"path"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/slipstream-storage/slipstream/internal/unixsocket"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/blockdev/shim"
)

// fakeSidecar is a replicator without data path, behind a real gRPC server on a Unix socket.
type fakeSidecar struct {
	sidecarpb.UnimplementedSidecarServer
	endpoint string
	shimDir  string

	node *node // whose pool it makes snapshots in

	mu       sync.Mutex
	server   *grpc.Server
	groups   map[string]*sidecarpb.GroupStatus
	attached map[string]bool
	formats  map[string][]blockdev.FormatRecord
	sizes    map[string]int64
	calls    []string
	methods  []string // of all calls that arrived, as they are called on the wire
	ordinal  uint64   // of the last cut
	// hook is called before each call; an error is the call's.
	hook func(call string) error
}

func startSidecar(t *testing.T) *fakeSidecar {
	t.Helper()
	dir := t.TempDir()
	s := &fakeSidecar{
		endpoint: "unix://" + filepath.Join(dir, "s.sock"), shimDir: filepath.Join(dir, "shim"),
		groups: map[string]*sidecarpb.GroupStatus{}, attached: map[string]bool{},
		formats: map[string][]blockdev.FormatRecord{}, sizes: map[string]int64{},
	}
	s.start(t)
	t.Cleanup(s.stop)
	return s
}

func (s *fakeSidecar) start(t *testing.T) {
	t.Helper()
	listener, err := unixsocket.Listen(s.endpoint)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.UnaryInterceptor(func(ctx context.Context, request any, info *grpc.UnaryServerInfo,
		handler grpc.UnaryHandler) (any, error) {
		s.mu.Lock()
		s.methods = append(s.methods, path.Base(info.FullMethod))
		s.mu.Unlock()
		return handler(ctx, request)
	}))
	sidecarpb.RegisterSidecarServer(server, s)
	s.mu.Lock()
	s.server = server
	s.mu.Unlock()
	go func(l net.Listener) { _ = server.Serve(l) }(listener)
}

func (s *fakeSidecar) stop() {
	s.mu.Lock()
	server := s.server
	s.mu.Unlock()
	server.Stop()
}

func (s *fakeSidecar) begin(call string, args ...any) (func(), error) {
	s.mu.Lock()
	text := fmt.Sprint(append([]any{call, " "}, args...)...)
	if s.hook != nil {
		if err := s.hook(text); err != nil {
			s.mu.Unlock()
			return nil, err
		}
	}
	s.calls = append(s.calls, text)
	return s.mu.Unlock, nil
}

func (s *fakeSidecar) Probe(context.Context, *sidecarpb.ProbeRequest) (*sidecarpb.ProbeResponse, error) {
	return &sidecarpb.ProbeResponse{Ready: true, Site: "east"}, nil
}

func (s *fakeSidecar) AttachVolume(_ context.Context,
	r *sidecarpb.AttachVolumeRequest) (*sidecarpb.AttachVolumeResponse, error) {
	done, err := s.begin("AttachVolume", r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	defer done()
	s.attached[r.GetVolumeId()] = true
	return &sidecarpb.AttachVolumeResponse{Path: filepath.Join(s.shimDir, r.GetVolumeId(), shim.FileName),
		BlockSizeBytes: 4096}, nil
}

func (s *fakeSidecar) DetachVolume(_ context.Context,
	r *sidecarpb.DetachVolumeRequest) (*sidecarpb.DetachVolumeResponse, error) {
	done, err := s.begin("DetachVolume", r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	defer done()
	delete(s.attached, r.GetVolumeId())
	return &sidecarpb.DetachVolumeResponse{}, nil
}

func (s *fakeSidecar) RecordFormat(_ context.Context,
	r *sidecarpb.RecordFormatRequest) (*sidecarpb.RecordFormatResponse, error) {
	done, err := s.begin("RecordFormat", r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	defer done()
	var record blockdev.FormatRecord
	if err := json.Unmarshal(r.GetFormatJson(), &record); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	s.formats[r.GetVolumeId()] = append(s.formats[r.GetVolumeId()], record)
	return &sidecarpb.RecordFormatResponse{}, nil
}

func (s *fakeSidecar) ResizeVolume(_ context.Context,
	r *sidecarpb.ResizeVolumeRequest) (*sidecarpb.ResizeVolumeResponse, error) {
	done, err := s.begin("ResizeVolume", r.GetVolumeId(), " ", r.GetSizeBytes())
	if err != nil {
		return nil, err
	}
	defer done()
	s.sizes[r.GetVolumeId()] = max(s.sizes[r.GetVolumeId()], r.GetSizeBytes())
	return &sidecarpb.ResizeVolumeResponse{SizeBytes: s.sizes[r.GetVolumeId()]}, nil
}

func (s *fakeSidecar) CreateGroup(_ context.Context,
	r *sidecarpb.CreateGroupRequest) (*sidecarpb.CreateGroupResponse, error) {
	done, err := s.begin("CreateGroup", r.GetName())
	if err != nil {
		return nil, err
	}
	defer done()
	return s.makeGroup(r.GetName(), r.GetSettings())
}

// makeGroup is CreateGroup, for a caller that holds mu.
func (s *fakeSidecar) makeGroup(name string, settings *sidecarpb.GroupSettings) (*sidecarpb.CreateGroupResponse,
	error) {
	size := settings.GetJournalSizeBytes()
	if size == 0 {
		size = gib
	}
	if g, ok := s.groups[name]; ok {
		if g.GetPeer() != settings.GetRemote() || g.GetJournalSizeBytes() != size {
			return nil, status.Error(codes.AlreadyExists, "other properties")
		}
		return &sidecarpb.CreateGroupResponse{GroupId: g.GetGroupId()}, nil
	}
	s.groups[name] = &sidecarpb.GroupStatus{Name: name, GroupId: "id-" + name, Role: sidecarpb.Role_ROLE_PRIMARY,
		Peer: settings.GetRemote(), JournalSizeBytes: size, JournalFull: settings.GetJournalFull(),
		RpoTargetSeconds:   float64(settings.GetRpoTargetMillis()) / 1e3,
		ShipBytesPerSecond: settings.GetShipBytesPerSecond(), TailsMost: settings.GetTailsMost(),
		TailsMillis: settings.GetTailsMillis()}
	return &sidecarpb.CreateGroupResponse{GroupId: "id-" + name}, nil
}

// JoinGroup is CreateGroup, if need be, and AddVolume in one call. Both are in calls. The hook is called before each.
func (s *fakeSidecar) JoinGroup(ctx context.Context,
	r *sidecarpb.JoinGroupRequest) (*sidecarpb.JoinGroupResponse, error) {
	name := r.GetGroup()
	g, unfit := func() (*sidecarpb.GroupStatus, bool) {
		s.mu.Lock()
		defer s.mu.Unlock()
		g := s.groups[name]
		unfit := g != nil && (r.GetOnlyNew() || !s.fits(g, r))
		return proto.CloneOf(g), unfit
	}()
	switch {
	case unfit:
		return &sidecarpb.JoinGroupResponse{Unfit: g}, nil
	case g == nil && !r.GetCreate():
		return nil, status.Error(codes.NotFound, "no such group")
	case g == nil:
		done, err := s.begin("CreateGroup", name)
		if err == nil {
			_, err = s.makeGroup(name, r.GetSettings())
			done()
		}
		if err != nil {
			return nil, err
		}
	}
	_, err := s.AddVolume(ctx, &sidecarpb.AddVolumeRequest{Group: name, VolumeId: r.GetVolumeId()})
	return &sidecarpb.JoinGroupResponse{}, err
}

// fits: the caller holds mu.
func (s *fakeSidecar) fits(g *sidecarpb.GroupStatus, r *sidecarpb.JoinGroupRequest) bool {
	given := r.GetSettings()
	if given.Remote != nil && given.GetRemote() != g.GetPeer() ||
		given.JournalSizeBytes != nil && given.GetJournalSizeBytes() != g.GetJournalSizeBytes() ||
		given.JournalFull != nil && given.GetJournalFull() != g.GetJournalFull() ||
		given.RpoTargetMillis != nil && float64(given.GetRpoTargetMillis())/1e3 != g.GetRpoTargetSeconds() ||
		given.ShipBytesPerSecond != nil && given.GetShipBytesPerSecond() != g.GetShipBytesPerSecond() ||
		given.TailsMost != nil && given.GetTailsMost() != g.GetTailsMost() ||
		given.TailsMillis != nil && given.GetTailsMillis() != g.GetTailsMillis() {
		return false
	}
	member := func(v *sidecarpb.VolumeStatus) bool { return v.GetVolumeId() == r.GetVolumeId() }
	return r.GetNamespace() == "" || slices.ContainsFunc(g.Volumes, member) ||
		!slices.ContainsFunc(g.Volumes, func(v *sidecarpb.VolumeStatus) bool {
			return v.GetClaimNamespace() != "" && v.GetClaimNamespace() != r.GetNamespace()
		})
}

func (s *fakeSidecar) DeleteGroup(_ context.Context,
	r *sidecarpb.DeleteGroupRequest) (*sidecarpb.DeleteGroupResponse, error) {
	done, err := s.begin("DeleteGroup", r.GetName())
	if err != nil {
		return nil, err
	}
	defer done()
	g, ok := s.groups[r.GetName()]
	switch {
	case !ok:
		return nil, status.Error(codes.NotFound, "no such group")
	case len(g.GetVolumes()) > 0:
		return nil, status.Error(codes.FailedPrecondition, "it has volumes")
	}
	delete(s.groups, r.GetName())
	return &sidecarpb.DeleteGroupResponse{}, nil
}

func (s *fakeSidecar) AddVolume(_ context.Context,
	r *sidecarpb.AddVolumeRequest) (*sidecarpb.AddVolumeResponse, error) {
	done, err := s.begin("AddVolume", r.GetGroup(), " ", r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	defer done()
	g, ok := s.groups[r.GetGroup()]
	if !ok {
		return nil, status.Error(codes.NotFound, "no such group")
	}
	for name, other := range s.groups {
		in := func(v *sidecarpb.VolumeStatus) bool { return v.GetVolumeId() == r.GetVolumeId() }
		if name == r.GetGroup() || !slices.ContainsFunc(other.Volumes, in) {
			continue
		}
		if !r.GetMove() {
			return nil, status.Errorf(codes.FailedPrecondition, "it is in group %s", name)
		}
		other.Volumes = slices.DeleteFunc(other.Volumes, in)
	}
	if !slices.ContainsFunc(g.Volumes, func(v *sidecarpb.VolumeStatus) bool {
		return v.GetVolumeId() == r.GetVolumeId()
	}) {
		g.Volumes = append(g.Volumes, &sidecarpb.VolumeStatus{VolumeId: r.GetVolumeId()})
	}
	return &sidecarpb.AddVolumeResponse{}, s.recordGroup(r.GetVolumeId(), r.GetGroup())
}

func (s *fakeSidecar) ModifyGroup(_ context.Context,
	r *sidecarpb.ModifyGroupRequest) (*sidecarpb.ModifyGroupResponse, error) {
	done, err := s.begin("ModifyGroup", r.GetName())
	if err != nil {
		return nil, err
	}
	defer done()
	g, ok := s.groups[r.GetName()]
	if !ok {
		return nil, status.Error(codes.NotFound, "no such group")
	}
	given := r.GetSettings()
	if given.Remote != nil {
		g.Peer = *given.Remote
	}
	if given.JournalSizeBytes != nil {
		g.JournalSizeBytes = *given.JournalSizeBytes
	}
	if given.JournalFull != nil {
		g.JournalFull = *given.JournalFull
	}
	if given.RpoTargetMillis != nil {
		g.RpoTargetSeconds = float64(*given.RpoTargetMillis) / 1e3
	}
	if given.ShipBytesPerSecond != nil {
		g.ShipBytesPerSecond = *given.ShipBytesPerSecond
	}
	if given.TailsMost != nil {
		g.TailsMost = *given.TailsMost
	}
	if given.TailsMillis != nil {
		g.TailsMillis = *given.TailsMillis
	}
	return &sidecarpb.ModifyGroupResponse{}, nil
}

func (s *fakeSidecar) ModifyVolume(_ context.Context,
	r *sidecarpb.ModifyVolumeRequest) (*sidecarpb.ModifyVolumeResponse, error) {
	done, err := s.begin("ModifyVolume", r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	defer done()
	_, err = s.node.d.store.Pool.Update(r.GetVolumeId(), func(rec *blockdev.VolumeRecord) error {
		if r.Order != nil {
			rec.Order = blockdev.Order(r.GetOrder())
		}
		if r.IoBytesPerSecond != nil {
			rec.IOBytesPerSecond = r.GetIoBytesPerSecond()
		}
		if r.Iops != nil {
			rec.IOPS = r.GetIops()
		}
		return nil
	})
	return &sidecarpb.ModifyVolumeResponse{}, err
}

func (s *fakeSidecar) RemoveVolume(_ context.Context,
	r *sidecarpb.RemoveVolumeRequest) (*sidecarpb.RemoveVolumeResponse, error) {
	done, err := s.begin("RemoveVolume", r.GetGroup(), " ", r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	defer done()
	g, ok := s.groups[r.GetGroup()]
	if !ok {
		return nil, status.Error(codes.NotFound, "no such group")
	}
	g.Volumes = slices.DeleteFunc(g.Volumes, func(v *sidecarpb.VolumeStatus) bool {
		return v.GetVolumeId() == r.GetVolumeId()
	})
	return &sidecarpb.RemoveVolumeResponse{}, s.recordGroup(r.GetVolumeId(), "")
}

func (s *fakeSidecar) ListGroups(_ context.Context,
	r *sidecarpb.ListGroupsRequest) (*sidecarpb.ListGroupsResponse, error) {
	done, err := s.begin("ListGroups", r.GetName())
	if err != nil {
		return nil, err
	}
	defer done()
	response := &sidecarpb.ListGroupsResponse{}
	for name, g := range s.groups {
		if r.GetName() == "" || r.GetName() == name {
			response.Groups = append(response.Groups, proto.Clone(g).(*sidecarpb.GroupStatus))
		}
	}
	return response, nil
}

// claimOf says which claim a member is of, as the replicator reads it from the volume's record.
func (s *fakeSidecar) claimOf(id, namespace, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.groups {
		for _, v := range g.GetVolumes() {
			if v.GetVolumeId() == id {
				v.ClaimNamespace, v.ClaimName = namespace, name
			}
		}
	}
}
