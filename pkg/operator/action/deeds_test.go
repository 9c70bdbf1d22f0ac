package action_test

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
)

// TestVerifyAction waits for a comparison that runs already, begins one of its own on each node, begins it again when
// it was interrupted, and fails if the sites differ.
func TestVerifyAction(t *testing.T) {
	s := primary(t)
	s.Change(func(g *sidecarpb.GroupStatus) { g.Verify = &sidecarpb.VerifyStatus{Running: true} })
	spec := v1alpha1.GroupActionSpec{Group: "shop", Type: v1alpha1.ActionVerify}
	wantAction(t, s.Act("v", spec), v1alpha1.ActionRunning, "another comparison")
	endVerify(s)
	wantAction(t, s.GoOn("v"), v1alpha1.ActionRunning, "is compared")
	for _, n := range s.Nodes {
		n.EndVerify(0, "the link went away")
	}
	wantAction(t, s.GoOn("v"), v1alpha1.ActionRunning, "is compared")
	endVerify(s)                                                      // of the first node
	wantAction(t, s.GoOn("v"), v1alpha1.ActionRunning, "is compared") // and the second one
	endVerify(s)
	a := s.GoOn("v")
	wantAction(t, a, v1alpha1.ActionSucceeded)
	if r := a.Status.Result; r.Differences == nil || *r.Differences != 0 || len(r.Points) != 2 ||
		r.Points[0].Ordinal != 7 {
		t.Errorf("result: %+v", r)
	}

	s.Act("w", spec)
	s.Nodes["a"].EndVerify(9, "")
	s.GoOn("w")
	s.Nodes["b"].EndVerify(1, "")
	a = s.GoOn("w")
	wantAction(t, a, v1alpha1.ActionFailed, "9 extents differ", "vol-shop-one at byte 65536", "1 extent differs", "repair")
	if *a.Status.Result.Differences != 10 {
		t.Errorf("%d differences", *a.Status.Result.Differences)
	}

	// At a copy there is nothing to begin.
	s.Nodes["a"].Fail["Verify"] = status.Error(codes.FailedPrecondition, "group is secondary; run it at site-b")
	wantAction(t, s.Act("x", spec), v1alpha1.ActionFailed, "run it at site-b")
}

// TestFailureNamesTheCommand: what an action fails with is for a person who has kubectl, not for a caller of the
// engine.
func TestFailureNamesTheCommand(t *testing.T) {
	s := primary(t)
	for _, n := range s.Nodes {
		n.Fail["BookmarkGroup"] = status.Error(codes.FailedPrecondition, "both sites took writes; "+
			core.Command{Site: "site-b", Verb: core.CommandYield, Name: "shop-ylevle36l6"}.String())
	}
	a := s.Act("b", v1alpha1.GroupActionSpec{Group: "shop", Type: v1alpha1.ActionBookmark, Bookmark: "monday"})
	wantAction(t, a, v1alpha1.ActionFailed, "both sites took writes; `kubectl slipstream yield shop -n shop` at site-b")
	if strings.Contains(a.Status.Message, "rpc error") {
		t.Errorf("message: %s", a.Status.Message)
	}
}

// TestBookmarkAction names one point on each node; a label that is taken is refused.
func TestBookmarkAction(t *testing.T) {
	s := primary(t)
	spec := v1alpha1.GroupActionSpec{Group: "shop", Type: v1alpha1.ActionBookmark, Bookmark: "monday"}
	a := s.Act("b", spec)
	wantAction(t, a, v1alpha1.ActionSucceeded)
	if points := a.Status.Result.Points; len(points) != 2 || points[0].Ordinal != 41 || points[0].Time == nil {
		t.Errorf("points: %+v", points)
	}
	wantAction(t, s.Act("c", spec), v1alpha1.ActionFailed, "has a bookmark monday already, at ordinal 41")
	// Another one's call in between.
	for _, n := range s.Nodes {
		n.Fail["BookmarkGroup"] = status.Error(codes.AlreadyExists, "taken")
	}
	spec.Bookmark = "tuesday"
	wantAction(t, s.Act("d", spec), v1alpha1.ActionFailed, "taken")
}

// TestReprotectAction says what it waits for, and ends when the copy is whole and follows.
func TestReprotectAction(t *testing.T) {
	s := primary(t)
	spec := v1alpha1.GroupActionSpec{Group: "shop", Type: v1alpha1.ActionReprotect}
	done, total := uint64(5), uint64(10)
	for _, step := range []struct {
		state sidecarpb.GroupState
		want  string
	}{
		{sidecarpb.GroupState_GROUP_STATE_DIVERGED, "if that site is to give way: kubectl slipstream yield shop"},
		{sidecarpb.GroupState_GROUP_STATE_CONNECTING, "is connecting: waiting for site-b"},
		{sidecarpb.GroupState_GROUP_STATE_SYNCING, "5 of 10 bytes"},
	} {
		s.Change(func(g *sidecarpb.GroupStatus) {
			g.State, g.SyncDoneBytes, g.SyncTotalBytes = step.state, &done, &total
		})
		if step.state == sidecarpb.GroupState_GROUP_STATE_DIVERGED {
			s.Act("r", spec)
		}
		wantAction(t, s.GoOn("r"), v1alpha1.ActionRunning, step.want)
	}
	writes := uint64(3)
	s.Change(func(g *sidecarpb.GroupStatus) {
		g.State = sidecarpb.GroupState_GROUP_STATE_STREAMING
		g.Loss = &sidecarpb.LossReport{Exact: true, LostWrites: &writes, Text: "3 writes"}
	})
	a := s.GoOn("r")
	wantAction(t, a, v1alpha1.ActionSucceeded, "replicated to the other site")
	if l := a.Status.Result.Loss; l == nil || !l.Exact || *l.Writes != 6 || !strings.Contains(a.Status.Steps[0].Message,
		"3 writes") {
		t.Errorf("loss: %+v, %+v", l, a.Status.Steps)
	}
	s.Change(func(g *sidecarpb.GroupStatus) { g.Role = sidecarpb.Role_ROLE_SECONDARY })
	wantAction(t, s.Act("there", spec), v1alpha1.ActionFailed, "make the action at site-b")
}

// TestActionTimeout: an action that waits for too long fails, and says what it waited for.
func TestActionTimeout(t *testing.T) {
	s := primary(t)
	s.Change(func(g *sidecarpb.GroupStatus) { g.State = sidecarpb.GroupState_GROUP_STATE_CONNECTING })
	spec := v1alpha1.GroupActionSpec{Group: "shop", Type: v1alpha1.ActionReprotect,
		Timeout: &metav1.Duration{Duration: time.Minute}}
	wantAction(t, s.Act("r", spec), v1alpha1.ActionRunning)
	s.Clock = s.Clock.Add(time.Minute)
	wantAction(t, s.GoOn("r"), v1alpha1.ActionRunning)
	s.Clock = s.Clock.Add(time.Second)
	a := s.GoOn("r")
	wantAction(t, a, v1alpha1.ActionFailed, "within spec.timeout of 1m0s", "is connecting")
	if a.Status.CompletionTime == nil {
		t.Error("no completion time")
	}
}

// TestFailoverToPoint: a failover to a recovery point stays undecided until it is committed or rolled back.
func TestFailoverToPoint(t *testing.T) {
	point := v1alpha1.GroupActionSpec{Group: "shop", Type: v1alpha1.ActionFailover,
		RecoveryPoint: &v1alpha1.RecoveryPoint{Bookmark: new("monday")}}
	of := func(kind v1alpha1.ActionType) v1alpha1.GroupActionSpec {
		return v1alpha1.GroupActionSpec{Group: "shop", Type: kind}
	}
	s := secondary(t)
	a := s.Act("there", point)
	wantAction(t, a, v1alpha1.ActionSucceeded, "primary here")
	if r := a.Status.Result; len(r.Points) != 2 || r.Points[0].Ordinal != 42 || r.RPO != nil || r.RTO == nil ||
		!strings.Contains(a.Status.Steps[0].Message, "without 5 writes past it; undecided") {
		t.Errorf("result: %+v, %+v", r, a.Status.Steps)
	}
	s.Settle("shop")
	if g := s.Group("shop", "shop"); g.Status.State != "Trial" || g.Status.Role != v1alpha1.RolePrimary {
		t.Errorf("state %q, role %s", g.Status.State, g.Status.Role)
	}
	wantAction(t, s.Act("back", of(v1alpha1.ActionRollback)), v1alpha1.ActionSucceeded, "secondary here")
	s.Act("again", point)
	a = s.Act("stay", of(v1alpha1.ActionCommit))
	wantAction(t, a, v1alpha1.ActionSucceeded, "at its point for good")
	if !strings.Contains(a.Status.Steps[0].Message, "tail-1") {
		t.Errorf("steps: %+v", a.Status.Steps)
	}
	wantAction(t, s.Act("too-late", of(v1alpha1.ActionRollback)), v1alpha1.ActionFailed, "nothing to roll back")
	wantAction(t, s.Act("twice", of(v1alpha1.ActionCommit)), v1alpha1.ActionSucceeded, "already")
}
