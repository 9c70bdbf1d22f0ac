package router

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	groups "github.com/slipstream-storage/slipstream/pkg/api/addongrouppb"
	replication "github.com/slipstream-storage/slipstream/pkg/api/addonreplicationpb"
	engine "github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
)

// addonsSite is a site with one or more nodes, its router, and a client of the router's csi-addons services, as the
// sidecar is one.
type addonsSite struct {
	*cluster
	router       *testRouter
	replication  replication.ControllerClient
	volumeGroups groups.ControllerClient
	conn         *grpc.ClientConn
}

func newAddonsSite(t testing.TB, site string, network *link.Network, nodes ...string) *addonsSite {
	c := newSite(t, site, network, nodes...)
	s := &addonsSite{cluster: c, router: c.router()}
	s.router.connected(t, nodes...)
	listener := bufconn.Listen(1 << 20)
	server := grpc.NewServer()
	s.router.RegisterAddons(server)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	conn, err := grpc.NewClient("passthrough:///bufconn", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	s.conn = conn
	s.replication, s.volumeGroups = replication.NewControllerClient(conn), groups.NewControllerClient(conn)
	return s
}

// pairOfSites are two sites that reach each other; site-b has one node.
func pairOfSites(t testing.TB) (network *link.Network, a, b *addonsSite) {
	network = link.NewNetwork(nil)
	t.Cleanup(network.Close)
	a = newAddonsSite(t, "site-a", network, "a1", "a2")
	b = newAddonsSite(t, "site-b", network, "b1")
	return network, a, b
}

// write puts text at the beginning of a volume, as its application does on the node of the volume.
func (s *addonsSite) write(t testing.TB, id, text string) {
	t.Helper()
	for _, n := range s.nodes {
		g, err := n.engine.GroupOf(id)
		if err != nil {
			continue
		}
		v, err := g.Attach(id)
		if err != nil {
			t.Fatal(err)
		}
		block := make([]byte, 4096)
		copy(block, text)
		if _, err := v.WriteAt(block, 0); err != nil {
			t.Fatal(err)
		}
		if err := v.Flush(); err != nil {
			t.Fatal(err)
		}
		if err := g.Detach(id); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Fatalf("%s: volume %s is in no group", s.site, id)
}

// read returns what write has put there, at a site that is primary.
func (s *addonsSite) read(t testing.TB, id string) string {
	t.Helper()
	for _, n := range s.nodes {
		g, err := n.engine.GroupOf(id)
		if err != nil {
			continue
		}
		v, err := g.Attach(id)
		if err != nil {
			t.Fatal(err)
		}
		block := make([]byte, 4096)
		if _, err := v.ReadAt(block, 0); err != nil {
			t.Fatal(err)
		}
		if err := g.Detach(id); err != nil {
			t.Fatal(err)
		}
		return string(bytes.TrimRight(block, "\x00"))
	}
	t.Fatalf("%s: volume %s is in no group", s.site, id)
	return ""
}

// timeline is that of a volume's group, empty where the site does not have the volume in a group.
func (s *addonsSite) timeline(id string) string {
	for _, n := range s.nodes {
		if g, err := n.engine.GroupOf(id); err == nil {
			return g.Status().Timeline
		}
	}
	return ""
}

// object is a VolumeReplication of the controller: what it asks for, and what the controller keeps of it.
type object struct {
	source     *replication.ReplicationSource
	parameters map[string]string
	autoResync bool

	state string // status.state: Primary, Secondary or empty
	ready bool
	err   error // of the last reconcile
}

func aboutVolume(id string) *replication.ReplicationSource {
	return &replication.ReplicationSource{Type: &replication.ReplicationSource_Volume{
		Volume: &replication.ReplicationSource_VolumeSource{VolumeId: id}}}
}

func aboutGroup(id string) *replication.ReplicationSource {
	return &replication.ReplicationSource{Type: &replication.ReplicationSource_Volumegroup{
		Volumegroup: &replication.ReplicationSource_VolumeGroupSource{VolumeGroupId: id}}}
}

// replay makes the calls that the controller of kubernetes-csi-addons at d4d7fea makes, in its order and with what it
// concludes from codes. Calls are repeated, and answers get lost, at random.
type replay struct {
	t      testing.TB
	random *rand.Rand // nil: no repeats, nothing is lost
	forced int        // promotions with force that succeeded
}

var errLost = status.Error(codes.Unavailable, "the answer was lost")

// do makes a call, perhaps twice, and returns its error, perhaps instead of its answer.
func (r *replay) do(call func() error) error {
	if r.random == nil {
		return call()
	}
	err := call()
	if r.random.IntN(4) == 0 {
		err = call()
	}
	if r.random.IntN(5) == 0 {
		return errLost
	}
	return err
}

// reconcile is one reconcile of an object with spec.replicationState primary or secondary.
func (r *replay) reconcile(s *addonsSite, o *object, want string) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	o.err = nil
	switch {
	case want == "primary" && o.state != "Primary":
		o.err = r.do(func() error {
			_, err := s.replication.EnableVolumeReplication(ctx, &replication.EnableVolumeReplicationRequest{
				ReplicationSource: o.source, Parameters: o.parameters})
			return err
		})
		if o.err != nil {
			return
		}
		promote := func(force bool) error {
			return r.do(func() error {
				_, err := s.replication.PromoteVolume(ctx, &replication.PromoteVolumeRequest{ReplicationSource: o.source,
					Parameters: o.parameters, Force: force})
				return err
			})
		}
		o.err = promote(false)
		if status.Code(o.err) == codes.FailedPrecondition {
			if o.err = promote(true); o.err == nil {
				r.forced++
			}
		}
		if o.err == nil {
			o.state = "Primary"
		}
	case want == "secondary":
		o.err = r.do(func() error {
			_, err := s.replication.DemoteVolume(ctx, &replication.DemoteVolumeRequest{ReplicationSource: o.source,
				Parameters: o.parameters})
			return err
		})
		if o.err != nil {
			return
		}
		if o.state != "Secondary" {
			o.state, o.ready = "Secondary", false
			return
		}
		var response *replication.ResyncVolumeResponse
		o.err = r.do(func() (err error) {
			response, err = s.replication.ResyncVolume(ctx, &replication.ResyncVolumeRequest{ReplicationSource: o.source,
				Parameters: o.parameters, Force: o.autoResync})
			return err
		})
		o.ready = o.err == nil && response.GetReady()
	}
}

// until reconciles until the object is what was asked for: Primary, or Secondary and ready.
func (r *replay) until(s *addonsSite, o *object, want string) {
	r.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		r.reconcile(s, o, want)
		if o.err == nil && (want == "primary" && o.state == "Primary" || want == "secondary" && o.ready) {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("%s: never %s: %+v", s.site, want, o)
		}
	}
}

// remove is the deletion of the object.
func (r *replay) remove(s *addonsSite, o *object) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r.retry("disable", func() error {
		_, err := s.replication.DisableVolumeReplication(ctx, &replication.DisableVolumeReplicationRequest{
			ReplicationSource: o.source, Parameters: o.parameters})
		if status.Code(err) == codes.NotFound {
			return nil
		}
		return err
	})
	o.state = ""
}

func (r *replay) retry(what string, call func() error) {
	r.t.Helper()
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if err = r.do(call); err == nil {
			return
		}
	}
	r.t.Fatalf("%s: %v", what, err)
}

// content is a VolumeGroupReplicationContent.
type content struct {
	name    string
	handle  string
	volumes []string
}

// group is a reconcile of a content, until it succeeds.
func (r *replay) group(s *addonsSite, c *content) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r.retry(fmt.Sprint("group ", c.name), func() error {
		if c.handle == "" {
			response, err := s.volumeGroups.CreateVolumeGroup(ctx, &groups.CreateVolumeGroupRequest{Name: c.name,
				VolumeIds: c.volumes})
			if err == nil {
				c.handle = response.GetVolumeGroup().GetVolumeGroupId()
			}
			return err
		}
		_, err := s.volumeGroups.ModifyVolumeGroupMembership(ctx, &groups.ModifyVolumeGroupMembershipRequest{
			VolumeGroupId: c.handle, VolumeIds: c.volumes})
		return err
	})
}

// removeGroup is the deletion of a content.
func (r *replay) removeGroup(s *addonsSite, c *content) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r.retry("empty the group", func() error {
		_, err := s.volumeGroups.ModifyVolumeGroupMembership(ctx, &groups.ModifyVolumeGroupMembershipRequest{
			VolumeGroupId: c.handle})
		if status.Code(err) == codes.NotFound {
			return nil
		}
		return err
	})
	r.retry("delete the group", func() error {
		_, err := s.volumeGroups.DeleteVolumeGroup(ctx, &groups.DeleteVolumeGroupRequest{VolumeGroupId: c.handle})
		return err
	})
}

// status is that of a volume's group.
func (s *addonsSite) status(t testing.TB, id string) *engine.Status {
	t.Helper()
	for _, n := range s.nodes {
		if g, err := n.engine.GroupOf(id); err == nil {
			return g.Status()
		}
	}
	t.Fatalf("%s: volume %s is in no group", s.site, id)
	return nil
}
