package router

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	groups "github.com/slipstream-storage/slipstream/pkg/api/addongrouppb"
	identity "github.com/slipstream-storage/slipstream/pkg/api/addonidentitypb"
	replication "github.com/slipstream-storage/slipstream/pkg/api/addonreplicationpb"
)

var (
	replicable = map[string]string{"slipstream.dev/replicable": "true"}
	toB        = map[string]string{"slipstream.dev/remote": "site-b", "schedulingInterval": "1m"}
	toA        = map[string]string{"slipstream.dev/remote": "site-a", "schedulingInterval": "1m"}
)

func newRandom(t testing.TB) *rand.Rand {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// waitForCopy waits until a site has a copy of a volume that can be promoted.
func (s *addonsSite) waitForCopy(t testing.TB, id string) {
	t.Helper()
	waitFor(t, fmt.Sprintf("a copy of %s at %s", id, s.site), func() bool {
		for _, n := range s.nodes {
			if g, err := n.engine.GroupOf(id); err == nil {
				st := g.Status()
				return st.Promotable && st.Connected && st.LagOrdinals != nil && *st.LagOrdinals == 0
			}
		}
		return false
	})
}

// A volume and a group of two go to and fro ten times, with calls repeated and answers lost. No promotion is forced,
// and each site finds what the other wrote.
func TestAddonsRelocate(t *testing.T) {
	_, a, b := pairOfSites(t)
	r := &replay{t: t, random: newRandom(t)}
	single, _ := a.router.create(t, createReq("single", on("a1"), replicable))
	orders, _ := a.router.create(t, createReq("orders", on("a1"), replicable))
	stock, _ := a.router.create(t, createReq("stock", on("a1"), replicable))
	atA := &object{source: aboutVolume(single), parameters: toB}
	atB := &object{source: aboutVolume(single), parameters: toA}
	c := &content{name: "vgrcontent-1", volumes: []string{stock, orders}}
	r.group(a, c)
	groupAtA := &object{source: aboutGroup(c.handle), parameters: toB}
	r.until(a, atA, "primary")
	r.until(a, groupAtA, "primary")
	volumes := []string{single, orders, stock}
	for _, id := range volumes {
		a.write(t, id, "first "+id)
		b.waitForCopy(t, id)
	}
	// The other site's content is made by hand there: it has another name, and finds the group by its volumes.
	cB := &content{name: "vgrcontent-2", volumes: []string{orders, stock}}
	r.group(b, cB)
	if cB.handle != c.handle {
		t.Fatalf("the group is %s at site-a and %s at site-b", c.handle, cB.handle)
	}
	groupAtB := &object{source: aboutGroup(cB.handle), parameters: toA}
	r.until(b, atB, "secondary")
	r.until(b, groupAtB, "secondary")
	timelines := map[string]string{}
	for _, id := range volumes {
		timelines[id] = a.timeline(id)
	}

	from, to := a, b
	objects := map[*addonsSite][]*object{a: {atA, groupAtA}, b: {atB, groupAtB}}
	contents := map[*addonsSite]*content{a: c, b: cB}
	for round := range 10 {
		for _, o := range objects[from] {
			r.until(from, o, "secondary")
		}
		for _, o := range objects[to] {
			r.until(to, o, "primary")
		}
		for _, id := range volumes {
			text := fmt.Sprintf("round %d %s", round-1, id)
			if round == 0 {
				text = "first " + id
			}
			if got := to.read(t, id); got != text {
				t.Fatalf("round %d: %s at %s: %q, want %q", round, id, to.site, got, text)
			}
			to.write(t, id, fmt.Sprintf("round %d %s", round, id))
		}
		for _, site := range []*addonsSite{a, b} {
			r.group(site, contents[site]) // as on every reconcile: changes nothing
		}
		from, to = to, from
	}
	if r.forced > 0 {
		t.Errorf("%d promotions were forced", r.forced)
	}
	for _, id := range volumes {
		if got := from.timeline(id); got != timelines[id] {
			t.Errorf("volume %s: timeline %s, was %s: something was lost", id, got, timelines[id])
		}
	}

	// The objects go at the secondary, and the copy stays and is promoted again.
	r.remove(to, objects[to][0])
	r.remove(to, objects[to][1])
	r.removeGroup(to, contents[to])
	for _, id := range volumes {
		from.write(t, id, "last")
		to.waitForCopy(t, id)
	}
	// They go at the primary: replication ends, the volumes stay.
	r.remove(from, objects[from][0])
	r.remove(from, objects[from][1])
	r.removeGroup(from, contents[from])
	all, err := from.volumeGroups.ListVolumeGroups(context.Background(), &groups.ListVolumeGroupsRequest{})
	if err != nil || len(all.GetEntries()) > 0 {
		t.Errorf("left at %s: %v, %v", from.site, all, err)
	}
	if disk := from.onDisk(); len(disk) != len(volumes) {
		t.Errorf("volumes at %s: %v", from.site, disk)
	}
}

// A primary that can be heard is not forced aside, whatever the controller asks for. One that is silent is, after a
// while, as the controller does it without confirmation by a person.
func TestAddonsForce(t *testing.T) {
	network, a, b := pairOfSites(t)
	ctx := testContext(t)
	r := &replay{t: t}
	id, _ := a.router.create(t, createReq("data", on("a1"), replicable))
	atA, atB := &object{source: aboutVolume(id), parameters: toB}, &object{source: aboutVolume(id), parameters: toA}
	r.until(a, atA, "primary")
	a.write(t, id, "first")
	b.waitForCopy(t, id)
	promote := func(force bool) error {
		_, err := b.replication.PromoteVolume(ctx, &replication.PromoteVolumeRequest{ReplicationSource: atB.source,
			Force: force})
		return err
	}
	for _, force := range []bool{false, true} {
		err := promote(force)
		wantCode(t, "the primary can be heard", err, codes.Aborted)
		if err != nil && !strings.Contains(err.Error(), "slipctl group promote --force "+id) {
			t.Errorf("%v: it does not say what to do", err)
		}
	}
	network.Cut("site-a")
	waitFor(t, "site-a to be away", func() bool { return !b.status(t, id).Connected })
	for _, force := range []bool{false, true} {
		wantCode(t, "the primary was heard just now", promote(force), codes.Aborted)
	}
	b.shift.Add(int64(time.Minute))
	wantCode(t, "the primary has been silent", promote(false), codes.FailedPrecondition)
	network.Heal("site-a")
	waitFor(t, "site-a to be back", func() bool { return b.status(t, id).Connected })
	wantCode(t, "the primary is back before the forced call", promote(true), codes.Aborted)
	if b.status(t, id).Role != "secondary" {
		t.Fatalf("%v", b.status(t, id))
	}

	// The disaster.
	network.Cut("site-a")
	waitFor(t, "site-a to be away", func() bool { return !b.status(t, id).Connected })
	a.write(t, id, "lost")
	r.reconcile(b, atB, "primary")
	wantCode(t, "at once", atB.err, codes.Aborted)
	b.shift.Add(int64(time.Minute))
	r.reconcile(b, atB, "primary")
	if atB.err != nil || r.forced != 1 || b.read(t, id) != "first" {
		t.Fatalf("%v, %d forced", atB.err, r.forced)
	}
	b.write(t, id, "second")
	// The old primary is back: it is found out, and nothing that it is asked for overwrites anything.
	network.Heal("site-a")
	waitFor(t, "the fork to be found out", func() bool { return a.status(t, id).State == "diverged" })
	r.reconcile(a, atA, "primary")
	info, err := a.replication.GetVolumeReplicationInfo(ctx, &replication.GetVolumeReplicationInfoRequest{
		ReplicationSource: atA.source})
	if err != nil || info.GetStatus() != replication.GetVolumeReplicationInfoResponse_ERROR {
		t.Errorf("info of a diverged group: %v, %v", info, err)
	}
	atA.state = "Primary"
	r.reconcile(a, atA, "secondary")
	if atA.err != nil {
		t.Fatal(atA.err)
	}
	r.reconcile(a, atA, "secondary")
	wantCode(t, "resync of a diverged group", atA.err, codes.Aborted)
	_, err = a.replication.PromoteVolume(ctx, &replication.PromoteVolumeRequest{ReplicationSource: atA.source,
		Force: true})
	wantCode(t, "promotion of a diverged group", err, codes.Aborted)
	if got := b.read(t, id); got != "second" {
		t.Errorf("at site-b: %q", got)
	}
	// With autoResync, as Ramen sets it after a failover, the old primary gives way. What it wrote is kept.
	atA.autoResync = true
	r.until(a, atA, "secondary")
	if tails, err := a.nodes["a1"].engine.Tails(""); err != nil || len(tails) != 1 || tails[0].Writes != 1 {
		t.Errorf("tails %v, %v", tails, err)
	}
	atB.state = "Primary"
	r.until(b, atB, "secondary")
	r.until(a, atA, "primary")
	if got := a.read(t, id); got != "second" || r.forced != 1 {
		t.Errorf("back at site-a: %q, %d promotions were forced", got, r.forced)
	}
}

// A demotion is taken back at the same site, as the tests of csi-addons do, while the peer follows.
func TestAddonsDemoteAndBack(t *testing.T) {
	network, a, b := pairOfSites(t)
	ctx := testContext(t)
	r := &replay{t: t, random: newRandom(t)}
	id, _ := a.router.create(t, createReq("data", on("a1"), replicable))
	o := &object{source: aboutVolume(id), parameters: toB}
	for i := range 3 {
		r.until(a, o, "primary")
		a.write(t, id, fmt.Sprint(i))
		b.waitForCopy(t, id)
		r.until(a, o, "secondary")
		waitFor(t, "the peer to follow", func() bool { return a.status(t, id).Connected })
	}
	if r.forced > 0 {
		t.Errorf("%d promotions were forced by the controller", r.forced)
	}
	// The peer may have been promoted while it cannot be heard.
	network.Cut("site-b")
	waitFor(t, "site-b to be away", func() bool { return !a.status(t, id).Connected })
	_, err := a.replication.PromoteVolume(ctx, &replication.PromoteVolumeRequest{ReplicationSource: o.source})
	wantCode(t, "the peer was heard just now", err, codes.Aborted)
}

// What the calls answer where they are not meant to succeed.
func TestAddonsCodes(t *testing.T) {
	_, a, b := pairOfSites(t)
	ctx := testContext(t)
	plain, _ := a.router.create(t, createReq("plain", on("a1"), nil))
	free, _ := a.router.create(t, createReq("free", on("a1"), replicable))
	elsewhere, _ := a.router.create(t, createReq("elsewhere", on("a2"), replicable))
	shop := map[string]string{"slipstream.dev/consistency-group": "shop", "slipstream.dev/remote": "site-b"}
	one, _ := a.router.create(t, createReq("one", on("a1"), shop))
	two, _ := a.router.create(t, createReq("two", on("a1"), shop))

	enable := func(source *replication.ReplicationSource, parameters map[string]string) error {
		_, err := a.replication.EnableVolumeReplication(ctx, &replication.EnableVolumeReplicationRequest{
			ReplicationSource: source, Parameters: parameters})
		return err
	}
	wantCode(t, "enable nothing", enable(nil, toB), codes.InvalidArgument)
	wantCode(t, "enable no id", enable(aboutVolume(""), toB), codes.InvalidArgument)
	wantCode(t, "enable what is not there", enable(aboutVolume("vol-none"), toB), codes.NotFound)
	wantCode(t, "enable a group that is not there", enable(aboutGroup("none"), toB), codes.NotFound)
	wantCode(t, "enable a plain volume", enable(aboutVolume(plain), toB), codes.FailedPrecondition)
	wantCode(t, "enable a member", enable(aboutVolume(one), toB), codes.FailedPrecondition)
	wantCode(t, "enable without a remote", enable(aboutVolume(free), nil), codes.InvalidArgument)
	wantCode(t, "enable with a misspelt key", enable(aboutVolume(free),
		map[string]string{"slipstream.dev/remot": "site-b"}), codes.InvalidArgument)
	wantCode(t, "enable with a key of volumes", enable(aboutVolume(free),
		map[string]string{"slipstream.dev/order": "ack"}), codes.InvalidArgument)
	for range 2 {
		wantCode(t, "enable", enable(aboutVolume(free), toB), codes.OK)
	}
	wantCode(t, "enable with another remote", enable(aboutVolume(free),
		map[string]string{"slipstream.dev/remote": "site-c"}), codes.InvalidArgument)

	promote := func(s *addonsSite, id string) error {
		_, err := s.replication.PromoteVolume(ctx, &replication.PromoteVolumeRequest{ReplicationSource: aboutVolume(id)})
		return err
	}
	demote := func(s *addonsSite, id string) error {
		_, err := s.replication.DemoteVolume(ctx, &replication.DemoteVolumeRequest{ReplicationSource: aboutVolume(id)})
		return err
	}
	resync := func(s *addonsSite, id string) error {
		_, err := s.replication.ResyncVolume(ctx, &replication.ResyncVolumeRequest{ReplicationSource: aboutVolume(id)})
		return err
	}
	info := func(s *addonsSite, id string) error {
		_, err := s.replication.GetVolumeReplicationInfo(ctx, &replication.GetVolumeReplicationInfoRequest{
			ReplicationSource: aboutVolume(id)})
		return err
	}
	disable := func(s *addonsSite, id string) error {
		_, err := s.replication.DisableVolumeReplication(ctx, &replication.DisableVolumeReplicationRequest{
			ReplicationSource: aboutVolume(id)})
		return err
	}
	b.waitForCopy(t, free)
	for _, c := range []struct {
		what string
		call func(*addonsSite, string) error
		site *addonsSite
		id   string
		code codes.Code
	}{
		{"promote the primary", promote, a, free, codes.OK},
		{"promote without replication", promote, a, elsewhere, codes.Aborted},
		{"promote a member", promote, a, one, codes.InvalidArgument},
		{"promote what is not there", promote, a, "none", codes.NotFound},
		{"demote without replication", demote, a, elsewhere, codes.FailedPrecondition},
		{"demote a member", demote, a, one, codes.InvalidArgument},
		{"demote a secondary", demote, b, free, codes.OK},
		{"resync a primary", resync, a, free, codes.FailedPrecondition},
		{"resync without replication", resync, a, elsewhere, codes.FailedPrecondition},
		{"resync a secondary", resync, b, free, codes.OK},
		{"info of a primary", info, a, free, codes.OK},
		{"info of a member", info, a, two, codes.OK},
		{"info of a secondary", info, b, free, codes.FailedPrecondition},
		{"info without replication", info, a, elsewhere, codes.FailedPrecondition},
		{"disable without replication", disable, a, elsewhere, codes.OK},
		{"disable a member", disable, a, one, codes.OK},
		{"disable at a secondary", disable, b, free, codes.OK},
		{"disable what is not there", disable, a, "none", codes.NotFound},
	} {
		wantCode(t, c.what, c.call(c.site, c.id), c.code)
	}
	if st := a.status(t, one); st.Peer != "site-b" || len(st.Volumes) != 2 {
		t.Errorf("a call about a member changed its group: %v", st)
	}

	create := func(name string, ids ...string) (string, error) {
		response, err := a.volumeGroups.CreateVolumeGroup(ctx, &groups.CreateVolumeGroupRequest{Name: name, VolumeIds: ids})
		return response.GetVolumeGroup().GetVolumeGroupId(), err
	}
	for _, c := range []struct {
		what string
		name string
		ids  []string
		code codes.Code
	}{
		{"no name", "", []string{elsewhere}, codes.InvalidArgument},
		{"a name with a slash", "../x", []string{elsewhere}, codes.InvalidArgument},
		{"no volumes", "g", nil, codes.InvalidArgument},
		{"an empty id", "g", []string{""}, codes.InvalidArgument},
		{"no such volume", "g", []string{"none"}, codes.NotFound},
		{"a plain volume", "g", []string{plain}, codes.InvalidArgument},
		{"on two nodes", "g", []string{free, elsewhere}, codes.FailedPrecondition},
		{"a member of another group", "g", []string{one, free}, codes.FailedPrecondition},
	} {
		_, err := create(c.name, c.ids...)
		wantCode(t, "create: "+c.what, err, c.code)
	}
	third, _ := a.router.create(t, createReq("third", on("a2"), replicable))
	mine, err := create("mine", elsewhere)
	if err != nil {
		t.Fatal(err)
	}
	modify := func(id string, ids ...string) error {
		_, err := a.volumeGroups.ModifyVolumeGroupMembership(ctx, &groups.ModifyVolumeGroupMembershipRequest{
			VolumeGroupId: id, VolumeIds: ids})
		return err
	}
	remove := func(id string) error {
		_, err := a.volumeGroups.DeleteVolumeGroup(ctx, &groups.DeleteVolumeGroupRequest{VolumeGroupId: id})
		return err
	}
	_, err = create("mine", third)
	wantCode(t, "create again with other volumes", err, codes.AlreadyExists)
	wantCode(t, "grow", modify(mine, elsewhere, third), codes.OK)
	_, err = create("mine", elsewhere)
	wantCode(t, "create again with fewer volumes", err, codes.AlreadyExists)
	wantCode(t, "modify: on two nodes", modify(mine, elsewhere, free), codes.FailedPrecondition)
	wantCode(t, "modify what is not there", modify("none", elsewhere), codes.NotFound)
	wantCode(t, "delete with volumes", remove(mine), codes.FailedPrecondition)
	wantCode(t, "delete what is not there", remove("none"), codes.OK)
	// A group of a StorageClass is found by its volumes, and keeps them.
	adopted, err := create("adopted", two, one)
	if err != nil {
		t.Fatal(err)
	}
	wantCode(t, "the same", modify(adopted, one, two), codes.OK)
	wantCode(t, "take one out", modify(adopted, one), codes.InvalidArgument)
	wantCode(t, "empty", modify(adopted), codes.OK)
	wantCode(t, "delete", remove(adopted), codes.OK)
	if st := a.status(t, one); len(st.Volumes) != 2 || st.Peer != "site-b" {
		t.Errorf("csi-addons took a group of a StorageClass apart: %v", st)
	}
	list := func(max int32, token string) *groups.ListVolumeGroupsResponse {
		response, err := a.volumeGroups.ListVolumeGroups(ctx, &groups.ListVolumeGroupsRequest{MaxEntries: max,
			StartingToken: token})
		if err != nil {
			t.Fatal(err)
		}
		return response
	}
	var seen []string
	for token := ""; ; {
		page := list(1, token)
		for _, e := range page.GetEntries() {
			seen = append(seen, e.GetVolumeGroup().GetVolumeGroupId())
		}
		if token = page.GetNextToken(); token == "" {
			break
		}
	}
	if whole := list(0, "").GetEntries(); len(seen) != len(whole) || len(whole) != 3 {
		t.Errorf("pages %v, whole %v", seen, whole)
	}
	got, err := a.volumeGroups.ControllerGetVolumeGroup(ctx, &groups.ControllerGetVolumeGroupRequest{VolumeGroupId: mine})
	if err != nil || len(got.GetVolumeGroup().GetVolumes()) != 2 {
		t.Errorf("%v, %v", got, err)
	}
	wantCode(t, "empty mine", modify(mine), codes.OK)
	wantCode(t, "delete mine", remove(mine), codes.OK)

	capabilities, err := identity.NewIdentityClient(a.conn).GetCapabilities(ctx, &identity.GetCapabilitiesRequest{})
	if err != nil || len(capabilities.GetCapabilities()) != 8 {
		t.Errorf("%v, %v", capabilities, err)
	}
	// A node that is away may have what is looked for: nothing is concluded from that.
	a.nodes["a2"].kill()
	wantCode(t, "promote, a node is away", promote(a, "none"), codes.Unavailable)
	wantCode(t, "promote on the other node", promote(a, free), codes.OK)
}
