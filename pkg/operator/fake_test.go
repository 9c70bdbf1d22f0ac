package operator

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
	"github.com/slipstream-storage/slipstream/pkg/plugin"
	"github.com/slipstream-storage/slipstream/pkg/router"
)

// fakeNode is a replicator in memory, with the rules of the real one that matter here.
type fakeNode struct {
	sidecarpb.SidecarClient // nil: other calls are a mistake

	mu         sync.Mutex
	groups     map[string]*sidecarpb.GroupStatus
	replicable func(volume string) bool
	claims     map[string][2]string // namespace and name, by volume
	silent     bool
	without    bool
	calls      []string
	fail       map[string]error // by call
	bookmarks  map[string][]*sidecarpb.Bookmark
	views      map[string]*sidecarpb.View // by group and name
}

func (n *fakeNode) do(call string) error {
	n.calls = append(n.calls, call)
	if n.silent {
		return status.Error(codes.Unavailable, "no answer")
	}
	if n.without {
		return status.Error(codes.FailedPrecondition, "no replicator")
	}
	return n.fail[strings.Fields(call)[0]]
}

func (n *fakeNode) ListGroups(context.Context, *sidecarpb.ListGroupsRequest,
	...grpc.CallOption) (*sidecarpb.ListGroupsResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.silent || n.without {
		return nil, n.do("ListGroups")
	}
	r := &sidecarpb.ListGroupsResponse{}
	for _, g := range n.groups {
		r.Groups = append(r.Groups, proto.CloneOf(g))
	}
	return r, nil
}

// ModifyVolume takes what is told of claims. It is no call that the tests of membership look at.
func (n *fakeNode) ModifyVolume(_ context.Context, r *sidecarpb.ModifyVolumeRequest,
	_ ...grpc.CallOption) (*sidecarpb.ModifyVolumeResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, g := range n.groups {
		for _, v := range g.GetVolumes() {
			if v.GetVolumeId() == r.GetVolumeId() {
				v.Claim = proto.CloneOf(r.GetClaim())
			}
		}
	}
	return &sidecarpb.ModifyVolumeResponse{}, nil
}

func (n *fakeNode) CreateGroup(_ context.Context, r *sidecarpb.CreateGroupRequest,
	_ ...grpc.CallOption) (*sidecarpb.CreateGroupResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.do("CreateGroup " + r.GetName()); err != nil {
		return nil, err
	}
	if n.groups[r.GetName()] == nil {
		zero := 0.0
		g := &sidecarpb.GroupStatus{Name: r.GetName(), Role: sidecarpb.Role_ROLE_PRIMARY, Timeline: "t1", Connected: true,
			State: sidecarpb.GroupState_GROUP_STATE_STREAMING, Promotable: true, JournalSizeBytes: 1 << 30, LagSeconds: &zero}
		n.groups[r.GetName()] = g
		set(g, r.GetSettings())
	}
	return &sidecarpb.CreateGroupResponse{}, nil
}

func set(g *sidecarpb.GroupStatus, s *sidecarpb.GroupSettings) {
	if s.Remote != nil {
		g.Peer, g.PeerAddress = s.GetRemote(), ""
	}
	if s.RemoteAddress != nil {
		g.PeerAddress = s.GetRemoteAddress()
	}
	if s.JournalSizeBytes != nil {
		g.JournalSizeBytes = s.GetJournalSizeBytes()
	}
	if s.JournalFull != nil {
		g.JournalFull = s.GetJournalFull()
	}
	if s.RpoTargetMillis != nil {
		g.RpoTargetSeconds = float64(s.GetRpoTargetMillis()) / 1000
	}
	if s.ShipBytesPerSecond != nil {
		g.ShipBytesPerSecond = s.GetShipBytesPerSecond()
	}
}

func (n *fakeNode) ModifyGroup(_ context.Context, r *sidecarpb.ModifyGroupRequest,
	_ ...grpc.CallOption) (*sidecarpb.ModifyGroupResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.do("ModifyGroup " + r.GetName()); err != nil {
		return nil, err
	}
	set(n.groups[r.GetName()], r.GetSettings())
	return &sidecarpb.ModifyGroupResponse{}, nil
}

func (n *fakeNode) DeleteGroup(_ context.Context, r *sidecarpb.DeleteGroupRequest,
	_ ...grpc.CallOption) (*sidecarpb.DeleteGroupResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.do("DeleteGroup " + r.GetName()); err != nil {
		return nil, err
	}
	if g := n.groups[r.GetName()]; g != nil && len(g.GetVolumes()) > 0 && !r.GetForce() {
		return nil, status.Error(codes.FailedPrecondition, "the group has volumes")
	}
	delete(n.groups, r.GetName())
	return &sidecarpb.DeleteGroupResponse{}, nil
}

func (n *fakeNode) AddVolume(_ context.Context, r *sidecarpb.AddVolumeRequest,
	_ ...grpc.CallOption) (*sidecarpb.AddVolumeResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.do("AddVolume " + r.GetGroup() + " " + r.GetVolumeId()); err != nil {
		return nil, err
	}
	g := n.groups[r.GetGroup()]
	if g == nil {
		return nil, status.Error(codes.NotFound, "no such group")
	}
	if n.replicable != nil && !n.replicable(r.GetVolumeId()) {
		return nil, sidecarpb.Refusal(codes.FailedPrecondition, sidecarpb.ReasonNotReplicable, "volume is not replicable")
	}
	for _, other := range n.groups {
		if n.in(other, r.GetVolumeId()) && other != g {
			if !r.GetMove() {
				return nil, status.Error(codes.FailedPrecondition, "volume is in another group")
			}
			n.remove(other, r.GetVolumeId())
		}
	}
	if !n.in(g, r.GetVolumeId()) {
		claim := n.claims[r.GetVolumeId()]
		g.Volumes = append(g.Volumes, &sidecarpb.VolumeStatus{VolumeId: r.GetVolumeId(), SizeBytes: 1 << 30,
			ClaimNamespace: claim[0], ClaimName: claim[1]})
	}
	return &sidecarpb.AddVolumeResponse{}, nil
}

func (n *fakeNode) in(g *sidecarpb.GroupStatus, id string) bool {
	return slices.ContainsFunc(g.GetVolumes(), func(v *sidecarpb.VolumeStatus) bool { return v.GetVolumeId() == id })
}

func (n *fakeNode) remove(g *sidecarpb.GroupStatus, id string) {
	g.Volumes = slices.DeleteFunc(g.Volumes, func(v *sidecarpb.VolumeStatus) bool { return v.GetVolumeId() == id })
}

func (n *fakeNode) RemoveVolume(_ context.Context, r *sidecarpb.RemoveVolumeRequest,
	_ ...grpc.CallOption) (*sidecarpb.RemoveVolumeResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.do("RemoveVolume " + r.GetGroup() + " " + r.GetVolumeId()); err != nil {
		return nil, err
	}
	n.remove(n.groups[r.GetGroup()], r.GetVolumeId())
	return &sidecarpb.RemoveVolumeResponse{}, nil
}

func (n *fakeNode) Promote(_ context.Context, r *sidecarpb.PromoteRequest,
	_ ...grpc.CallOption) (*sidecarpb.PromoteResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.do(fmt.Sprintf("Promote %s %v", r.GetGroup(), r.GetForce())); err != nil {
		return nil, err
	}
	g := n.groups[r.GetGroup()]
	if g.GetRole() == sidecarpb.Role_ROLE_SECONDARY {
		if !r.GetForce() && r.GetPoint() == nil && g.GetState() != sidecarpb.GroupState_GROUP_STATE_DEMOTED {
			return nil, status.Error(codes.FailedPrecondition, "the peer has not demoted itself")
		}
		if r.GetPoint() != nil {
			at := int64(1_700_000_000_000_000_000)
			g.Role, g.State = sidecarpb.Role_ROLE_PRIMARY, sidecarpb.GroupState_GROUP_STATE_TRIAL
			g.Trial = &sidecarpb.TrialStatus{Ordinal: 42, UnixNanos: &at, UndoneWrites: 5}
			return &sidecarpb.PromoteResponse{Status: proto.CloneOf(g)}, nil
		}
		g.Role, g.State = sidecarpb.Role_ROLE_PRIMARY, sidecarpb.GroupState_GROUP_STATE_CONNECTING
		if r.GetForce() {
			seconds := 1.5
			g.Timeline += "'"
			g.Loss = &sidecarpb.LossReport{LostSeconds: &seconds, Text: "at most 1.5 s"}
		}
	}
	return &sidecarpb.PromoteResponse{Loss: g.GetLoss(), Status: proto.CloneOf(g)}, nil
}

func (n *fakeNode) Demote(_ context.Context, r *sidecarpb.DemoteRequest,
	_ ...grpc.CallOption) (*sidecarpb.DemoteResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.do("Demote " + r.GetGroup()); err != nil {
		return nil, err
	}
	n.groups[r.GetGroup()].State = sidecarpb.GroupState_GROUP_STATE_DEMOTED
	return &sidecarpb.DemoteResponse{FinalOrdinal: 7}, nil
}

func (n *fakeNode) Suspend(_ context.Context, r *sidecarpb.SuspendRequest,
	_ ...grpc.CallOption) (*sidecarpb.SuspendResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.do("Suspend " + r.GetGroup()); err != nil {
		return nil, err
	}
	since := int64(1)
	g := n.groups[r.GetGroup()]
	g.SuspendedUnixNanos, g.State = &since, sidecarpb.GroupState_GROUP_STATE_SUSPENDED
	return &sidecarpb.SuspendResponse{Changed: true}, nil
}

func (n *fakeNode) Resume(_ context.Context, r *sidecarpb.ResumeRequest,
	_ ...grpc.CallOption) (*sidecarpb.ResumeResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.do("Resume " + r.GetGroup()); err != nil {
		return nil, err
	}
	g := n.groups[r.GetGroup()]
	g.SuspendedUnixNanos, g.State = nil, sidecarpb.GroupState_GROUP_STATE_STREAMING
	return &sidecarpb.ResumeResponse{Changed: true}, nil
}

func (n *fakeNode) Relocate(_ context.Context, r *sidecarpb.RelocateRequest,
	_ ...grpc.CallOption) (*sidecarpb.RelocateResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.do("Relocate " + r.GetGroup()); err != nil {
		return nil, err
	}
	n.groups[r.GetGroup()].Role = sidecarpb.Role_ROLE_SECONDARY
	return &sidecarpb.RelocateResponse{FinalOrdinal: 7, TookMillis: 1500}, nil
}

func (n *fakeNode) CommitTrial(_ context.Context, r *sidecarpb.CommitTrialRequest,
	_ ...grpc.CallOption) (*sidecarpb.CommitTrialResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.do("CommitTrial " + r.GetGroup()); err != nil {
		return nil, err
	}
	g := n.groups[r.GetGroup()]
	g.Trial, g.State = nil, sidecarpb.GroupState_GROUP_STATE_CONNECTING
	return &sidecarpb.CommitTrialResponse{Changed: true, TailId: "tail-1"}, nil
}

func (n *fakeNode) RollBackTrial(_ context.Context, r *sidecarpb.RollBackTrialRequest,
	_ ...grpc.CallOption) (*sidecarpb.RollBackTrialResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.do("RollBackTrial " + r.GetGroup()); err != nil {
		return nil, err
	}
	g := n.groups[r.GetGroup()]
	if g.Trial == nil {
		return &sidecarpb.RollBackTrialResponse{}, nil
	}
	g.Trial, g.Role, g.State = nil, sidecarpb.Role_ROLE_SECONDARY, sidecarpb.GroupState_GROUP_STATE_CONNECTING
	return &sidecarpb.RollBackTrialResponse{Changed: true}, nil
}

// Yield makes the group a secondary when the peer calls, which is the test's work.
func (n *fakeNode) Yield(_ context.Context, r *sidecarpb.YieldRequest,
	_ ...grpc.CallOption) (*sidecarpb.YieldResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.do("Yield " + r.GetGroup()); err != nil {
		return nil, err
	}
	return &sidecarpb.YieldResponse{Yield: &sidecarpb.YieldStatus{Writes: 3, Bytes: 12288}}, nil
}

// Verify begins a comparison; endVerify ends it.
func (n *fakeNode) Verify(_ context.Context, r *sidecarpb.VerifyRequest,
	_ ...grpc.CallOption) (*sidecarpb.VerifyResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.do("Verify " + r.GetGroup()); err != nil {
		return nil, err
	}
	g := n.groups[r.GetGroup()]
	if g.GetVerify().GetRunning() {
		return nil, status.Error(codes.FailedPrecondition, "a comparison runs")
	}
	if g.Verify == nil {
		g.Verify = &sidecarpb.VerifyStatus{}
	}
	g.Verify.Running, g.Verify.Error = true, ""
	return &sidecarpb.VerifyResponse{}, nil
}

// endVerify ends the comparisons that run, with so many differing extents each; a text is why they failed.
func (n *fakeNode) endVerify(differences uint64, failure string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, g := range n.groups {
		v := g.GetVerify()
		if !v.GetRunning() {
			continue
		}
		v.Running, v.Error = false, failure
		if failure != "" {
			continue
		}
		finished, ordinal := v.GetFinishedUnixNanos()+1, uint64(7)
		v.FinishedUnixNanos, v.Ordinal, v.DifferenceCount, v.Differences = &finished, &ordinal, &differences, nil
		for i := range differences {
			v.Differences = append(v.Differences, &sidecarpb.VolumeExtent{VolumeId: g.Volumes[0].VolumeId,
				OffsetBytes: int64(i) << 16, LengthBytes: 1 << 16})
		}
	}
}

func (n *fakeNode) GroupPoints(_ context.Context, r *sidecarpb.GroupPointsRequest,
	_ ...grpc.CallOption) (*sidecarpb.GroupPointsResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	response := &sidecarpb.GroupPointsResponse{}
	for _, b := range n.bookmarks[r.GetGroup()] {
		response.Bookmarks = append(response.Bookmarks, proto.CloneOf(b))
	}
	return response, nil
}

func (n *fakeNode) BookmarkGroup(_ context.Context, r *sidecarpb.BookmarkGroupRequest,
	_ ...grpc.CallOption) (*sidecarpb.Bookmark, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.do("BookmarkGroup " + r.GetGroup() + " " + r.GetLabel()); err != nil {
		return nil, err
	}
	for _, b := range n.bookmarks[r.GetGroup()] {
		if b.GetLabel() == r.GetLabel() {
			return nil, status.Error(codes.AlreadyExists, "there is a bookmark of that label")
		}
	}
	at := int64(1_700_000_000_000_000_000)
	b := &sidecarpb.Bookmark{Label: r.GetLabel(), Available: true,
		Point: &sidecarpb.RecoveryPoint{Ordinal: uint64(41 + len(n.bookmarks[r.GetGroup()])), UnixNanos: &at}}
	n.bookmarks[r.GetGroup()] = append(n.bookmarks[r.GetGroup()], b)
	return proto.CloneOf(b), nil
}

func (n *fakeNode) CreateView(_ context.Context, r *sidecarpb.CreateViewRequest,
	_ ...grpc.CallOption) (*sidecarpb.View, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.do("CreateView " + r.GetGroup()); err != nil {
		return nil, err
	}
	g := n.groups[r.GetGroup()]
	if g.GetRole() == sidecarpb.Role_ROLE_PRIMARY {
		return nil, status.Error(codes.FailedPrecondition, "group is primary: start it at the peer")
	}
	if n.views[r.GetGroup()+"/"+r.GetName()] != nil {
		return nil, status.Error(codes.AlreadyExists, "there is a view of that name")
	}
	at := int64(1_700_000_000_000_000_000)
	view := &sidecarpb.View{Group: r.GetGroup(), Name: r.GetName(), Ordinal: 42, PointUnixNanos: &at,
		CreatedUnixNanos: at + int64(10*time.Second), Writable: r.GetWritable(), Test: r.GetTest()}
	for _, v := range g.GetVolumes() {
		view.Volumes = append(view.Volumes, &sidecarpb.ViewVolume{VolumeId: v.GetVolumeId(), SizeBytes: v.GetSizeBytes(),
			FsType: "ext4", CsiVolumeId: "view-" + v.GetVolumeId()})
	}
	n.views[r.GetGroup()+"/"+r.GetName()] = view
	return proto.CloneOf(view), nil
}

func (n *fakeNode) ListViews(_ context.Context, r *sidecarpb.ListViewsRequest,
	_ ...grpc.CallOption) (*sidecarpb.ListViewsResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.silent {
		return nil, n.do("ListViews")
	}
	response := &sidecarpb.ListViewsResponse{}
	for _, v := range n.views {
		if r.GetGroup() == "" || r.GetGroup() == v.GetGroup() {
			response.Views = append(response.Views, proto.CloneOf(v))
		}
	}
	return response, nil
}

func (n *fakeNode) DeleteView(_ context.Context, r *sidecarpb.DeleteViewRequest,
	_ ...grpc.CallOption) (*sidecarpb.DeleteViewResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.do("DeleteView " + r.GetGroup()); err != nil {
		return nil, err
	}
	delete(n.views, r.GetGroup()+"/"+r.GetName())
	return &sidecarpb.DeleteViewResponse{}, nil
}

// took returns the calls since the last time.
func (n *fakeNode) took() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	calls := n.calls
	n.calls = nil
	return calls
}

// site is a cluster in memory with its reconcilers.
type site struct {
	t       *testing.T
	client  client.Client
	nodes   map[string]*fakeNode
	watcher *Watcher
	r       *NamespaceReconciler
	actions *ActionReconciler
	events  *events.FakeRecorder
	clock   time.Time
	writes  []string
	// down: the API server refuses everything.
	down bool
	// death ends the operator at one of its calls; nil: it lives.
	death *death
}

func (s *site) All() (all []router.Replicator, err error) {
	for name, n := range s.nodes {
		var client sidecarpb.SidecarClient = n
		if s.death != nil {
			client = sidecarpb.NewSidecarClient(&dyingConn{n, s.death})
		}
		all = append(all, router.Replicator{Node: name, Client: client})
	}
	return all, nil
}

func newSite(t *testing.T, nodes ...string) *site {
	t.Helper()
	s := &site{t: t, nodes: map[string]*fakeNode{}, events: events.NewFakeRecorder(100000),
		clock: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	for _, name := range nodes {
		s.nodes[name] = &fakeNode{groups: map[string]*sidecarpb.GroupStatus{}, claims: map[string][2]string{},
			fail: map[string]error{}, bookmarks: map[string][]*sidecarpb.Bookmark{},
			views: map[string]*sidecarpb.View{}}
	}
	scheme, err := Scheme()
	if err != nil {
		t.Fatal(err)
	}
	note := func(verb string, name string, do func() error) error {
		s.writes = append(s.writes, verb+" "+name)
		if s.down {
			return fmt.Errorf("the API server is away")
		}
		return s.death.around(verb+" "+name, do)
	}
	s.client = fake.NewClientBuilder().WithScheme(scheme).
		WithStatusSubresource(&v1alpha1.ConsistencyGroup{}, &v1alpha1.GroupAction{}, &v1alpha1.RemoteSite{},
			&v1alpha1.GroupActionSchedule{}).
		WithIndex(&corev1.PersistentVolume{}, IndexVolumesByNamespace, VolumeNamespace).
		WithInterceptorFuncs(interceptor.Funcs{
			Apply: func(ctx context.Context, c client.WithWatch, o runtime.ApplyConfiguration,
				opts ...client.ApplyOption) error {
				return note("apply", "", func() error { return c.Apply(ctx, o, opts...) })
			},
			SubResourceApply: func(ctx context.Context, c client.Client, sub string, o runtime.ApplyConfiguration,
				opts ...client.SubResourceApplyOption) error {
				return note("apply", sub, func() error { return c.SubResource(sub).Apply(ctx, o, opts...) })
			},
			Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
				if s.death == nil { // also of the tests
					return c.Create(ctx, o, opts...)
				}
				return note("create", o.GetName(), func() error { return c.Create(ctx, o, opts...) })
			},
			Patch: func(ctx context.Context, c client.WithWatch, o client.Object, p client.Patch,
				opts ...client.PatchOption) error {
				return note("patch", o.GetName(), func() error { return c.Patch(ctx, o, p, opts...) })
			},
			Delete: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.DeleteOption) error {
				return note("delete", o.GetName(), func() error { return c.Delete(ctx, o, opts...) })
			},
		}).Build()
	s.watcher = NewWatcher(s, func(_, _ *View) {})
	s.reset()
	return s
}

// reset is a restart of the operator.
func (s *site) reset() {
	now := func() time.Time { return s.clock }
	s.r = &NamespaceReconciler{Client: s.client, Live: s.client, Watcher: s.watcher, Events: s.events, Now: now}
	s.actions = &ActionReconciler{Client: s.client, Live: s.client, Watcher: s.watcher, Events: s.events, Now: now}
}

func (s *site) create(objects ...client.Object) {
	s.t.Helper()
	for _, o := range objects {
		if err := s.client.Create(context.Background(), o); err != nil {
			s.t.Fatal(err)
		}
	}
}

func (s *site) get(o client.Object, namespace, name string) {
	s.t.Helper()
	if err := s.client.Get(context.Background(), types.NamespacedName{Namespace: namespace, Name: name}, o); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) update(o client.Object) {
	s.t.Helper()
	if err := s.client.Update(context.Background(), o); err != nil {
		s.t.Fatal(err)
	}
}

// settle reconciles a namespace as often as its watches would, with looks at the engine in between.
func (s *site) settle(namespace string) {
	s.t.Helper()
	for range 5 {
		s.watcher.Look(context.Background())
		request := ctrl.Request{NamespacedName: types.NamespacedName{Name: namespace}}
		if _, err := s.r.Reconcile(context.Background(), request); err != nil {
			s.t.Fatal(err)
		}
	}
}

func (s *site) group(namespace, name string) *v1alpha1.ConsistencyGroup {
	s.t.Helper()
	g := &v1alpha1.ConsistencyGroup{}
	s.get(g, namespace, name)
	return g
}

// engine returns the volumes of all groups of all nodes, by group without the digest of its name.
func (s *site) engine() map[string][]string {
	all := map[string][]string{}
	for name, n := range s.nodes {
		n.mu.Lock()
		for _, g := range n.groups {
			readable := g.GetName()
			if i := strings.LastIndex(readable, "-"); i > 0 {
				readable = readable[:i]
			}
			key := name + "/" + readable
			all[key] = append(all[key], []string{}...)
			for _, v := range g.GetVolumes() {
				all[key] = append(all[key], v.GetVolumeId())
			}
			slices.Sort(all[key])
		}
		n.mu.Unlock()
	}
	return all
}

func namespace(name string, labels map[string]string) *corev1.Namespace {
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("uid-" + name), Labels: labels}}
}

func labelled(name string) *corev1.Namespace {
	return namespace(name, map[string]string{v1alpha1.LabelReplicateTo: "site-b"})
}

func remote(name string) *v1alpha1.RemoteSite {
	return &v1alpha1.RemoteSite{ObjectMeta: metav1.ObjectMeta{Name: name}}
}

// claim adds a bound claim with its volume on a node.
func (s *site) claim(namespace, name, node string, change ...func(*corev1.PersistentVolumeClaim)) string {
	s.t.Helper()
	id := "vol-" + namespace + "-" + name
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name,
		UID: types.UID("claim-" + id)}, Spec: corev1.PersistentVolumeClaimSpec{VolumeName: "pv-" + id,
		AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, Resources: corev1.VolumeResourceRequirements{
			Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}}}}
	for _, c := range change {
		c(claim)
	}
	s.create(claim)
	claim.Status.Phase = corev1.ClaimBound
	if err := s.client.Status().Update(context.Background(), claim); err != nil {
		s.t.Fatal(err)
	}
	s.create(volume(id, namespace, name, node))
	if n := s.nodes[node]; n != nil {
		n.mu.Lock()
		n.claims[id] = [2]string{namespace, name}
		n.mu.Unlock()
	}
	return id
}

func volume(id, namespace, claim, node string) *corev1.PersistentVolume {
	return &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv-" + id, UID: types.UID("pv-" + id)},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")},
			AccessModes:                   []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimRetain,
			ClaimRef: &corev1.ObjectReference{Namespace: namespace, Name: claim,
				UID: types.UID("claim-" + id)},
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
				Driver: plugin.Name, VolumeHandle: id}},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{
				NodeSelectorTerms: []corev1.NodeSelectorTerm{{
					MatchExpressions: []corev1.NodeSelectorRequirement{{Key: plugin.TopologyKey,
						Operator: corev1.NodeSelectorOpIn, Values: []string{node}}}}}}},
		}}
}

func wantCondition(t *testing.T, g *v1alpha1.ConsistencyGroup, kind string, want metav1.ConditionStatus,
	reason string) {
	t.Helper()
	c := meta.FindStatusCondition(g.Status.Conditions, kind)
	if c == nil || c.Status != want || c.Reason != reason {
		t.Errorf("condition %s of %s/%s: %+v, want %s %s", kind, g.Namespace, g.Name, c, want, reason)
	}
}
