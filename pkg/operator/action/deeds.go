package action

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/api/v1alpha1"
	"github.com/slipstream-storage/slipstream/pkg/operator/engine"
)

// maxNamedExtents is how many differing extents a message names.
const maxNamedExtents = 5

// deed is what a type of action does to one group at the engine.
type deed struct {
	verb string
	// is says what the group is then.
	is string
	// done reports that the group is as the action wants it; nil where no state of the group shows it.
	done func(*sidecarpb.GroupStatus) bool
	// before returns what the engine shows before the deed. It is in the record of the step before call is called, which
	// gets it back.
	before func(context.Context, *engineCall) (string, error)
	// call does it. With an errWait it is called again later, also by another process.
	call func(context.Context, *engineCall) (message string, err error)
	// loss: the result has the loss that the engine reports.
	loss bool
	// verdict says why an action whose calls all succeeded has failed.
	verdict func(*run) error
}

// engineCall is one call of a deed.
type engineCall struct {
	action *run
	client sidecarpb.SidecarClient
	at     engine.Place
	// before is what deed.before returned.
	before string
	// again: an earlier pass, perhaps of another process, may have made the call.
	again bool
}

func (e *engineCall) group() string { return e.at.Group.GetName() }

// refresh returns what the node says of the group now.
func (e *engineCall) refresh(ctx context.Context) (*sidecarpb.GroupStatus, error) {
	view, err := e.action.r.Watcher.Refresh(ctx, e.at.Node)
	if err != nil {
		return nil, err
	}
	for _, at := range view.Group(e.group()) {
		if at.Node == e.at.Node {
			return at.Group, nil
		}
	}
	return nil, waitFor("node %s does not tell of group %s", e.at.Node, e.group())
}

var deeds = map[v1alpha1.ActionType]deed{
	v1alpha1.ActionFailover: {verb: "Promote", is: "primary here", done: engine.Serves, call: promote, loss: true},
	v1alpha1.ActionDemote: {verb: "Demote", is: "demoted here",
		done: func(g *sidecarpb.GroupStatus) bool { return !engine.Serves(g) },
		call: func(ctx context.Context, e *engineCall) (string, error) {
			response, err := e.client.Demote(ctx, &sidecarpb.DemoteRequest{Group: e.group()})
			return fmt.Sprintf("demoted at ordinal %d", response.GetFinalOrdinal()), err
		}},
	v1alpha1.ActionSuspend: {verb: "Suspend", is: "suspended here", done: suspended,
		call: func(ctx context.Context, e *engineCall) (string, error) {
			_, err := e.client.Suspend(ctx, &sidecarpb.SuspendRequest{Group: e.group()})
			return "suspended", err
		}},
	v1alpha1.ActionResume: {verb: "Resume", is: "replicating from here",
		done: func(g *sidecarpb.GroupStatus) bool { return !suspended(g) },
		call: func(ctx context.Context, e *engineCall) (string, error) {
			_, err := e.client.Resume(ctx, &sidecarpb.ResumeRequest{Group: e.group()})
			return "resumed", err
		}},
	v1alpha1.ActionRelocate: {verb: "Relocate", is: "secondary here", done: follows,
		call: func(ctx context.Context, e *engineCall) (string, error) {
			response, err := e.client.Relocate(ctx, &sidecarpb.RelocateRequest{Group: e.group()})
			return fmt.Sprintf("secondary; the peer has everything up to ordinal %d; primary at no site for %v",
				response.GetFinalOrdinal(), time.Duration(response.GetTookMillis())*time.Millisecond), err
		}},
	v1alpha1.ActionYield: {verb: "Yield", is: "secondary here", done: follows,
		call: func(ctx context.Context, e *engineCall) (string, error) {
			response, err := e.client.Yield(ctx, &sidecarpb.YieldRequest{Group: e.group()})
			tail := response.GetYield()
			if tail == nil {
				return "yielded; this site wrote nothing past the fork", err
			}
			return fmt.Sprintf("yielded; %s of this site (%s) %s kept as snapshots",
				words.Count(tail.GetWrites(), "write"), words.Count(tail.GetBytes(), "byte"),
				words.Choose(tail.GetWrites(), "is", "are")), err
		}},
	v1alpha1.ActionReprotect: {verb: "Reprotect", is: "replicated to the other site", call: reprotect, loss: true},
	v1alpha1.ActionVerify:    {verb: "Verify", is: "compared", before: beforeVerify, call: verify, verdict: equalSites},
	v1alpha1.ActionCommit:    {verb: "Commit", is: "at its point for good", done: decided, call: commitTrial},
	v1alpha1.ActionRollback:  {verb: "Rollback", is: "secondary here", done: follows, call: rollBackTrial},
	v1alpha1.ActionBookmark:  {verb: "Bookmark", is: "bookmarked", before: beforeBookmark, call: bookmark},
}

// follows reports that a group is a copy here.
func follows(g *sidecarpb.GroupStatus) bool { return g.GetRole() == sidecarpb.Role_ROLE_SECONDARY }

func suspended(g *sidecarpb.GroupStatus) bool { return g.SuspendedUnixNanos != nil }

// decided reports that a group is not between a promotion to a point and the decision about it.
func decided(g *sidecarpb.GroupStatus) bool {
	return g.GetState() != sidecarpb.GroupState_GROUP_STATE_TRIAL
}

func commitTrial(ctx context.Context, e *engineCall) (string, error) {
	response, err := e.client.CommitTrial(ctx, &sidecarpb.CommitTrialRequest{Group: e.group()})
	if tail := response.GetTailId(); tail != "" {
		return "committed; what the site held past the point is kept as tail " + tail, err
	}
	return "committed", err
}

func rollBackTrial(ctx context.Context, e *engineCall) (string, error) {
	response, err := e.client.RollBackTrial(ctx, &sidecarpb.RollBackTrialRequest{Group: e.group()})
	if err == nil && !response.GetChanged() {
		err = fmt.Errorf("group %s was not opened at a point: there is nothing to roll back", e.group())
	}
	return "rolled back to what the site held", err
}

// promoteTo makes a group primary as of a point, undecided.
func promoteTo(ctx context.Context, e *engineCall, point *v1alpha1.RecoveryPoint) (string, error) {
	request := &sidecarpb.PromoteRequest{Group: e.group()}
	switch {
	case point.Ordinal != nil:
		request.Point = &sidecarpb.PromoteRequest_Ordinal{Ordinal: uint64(max(*point.Ordinal, 0))}
	case point.Time != nil:
		request.Point = &sidecarpb.PromoteRequest_AtUnixNanos{AtUnixNanos: point.Time.UnixNano()}
	case point.Bookmark != nil:
		request.Point = &sidecarpb.PromoteRequest_Bookmark{Bookmark: *point.Bookmark}
	}
	response, err := e.client.Promote(ctx, request)
	if err != nil {
		return "", err
	}
	const next = "undecided: look, and then make an action Commit or Rollback"
	trial := response.GetStatus().GetTrial()
	if trial == nil {
		return "primary as of the point; " + next, nil
	}
	e.action.point(e.group(), trial.GetOrdinal(), trial.UnixNanos)
	return fmt.Sprintf("primary as of ordinal %d, without %s past it; %s", trial.GetOrdinal(),
		words.Count(trial.GetUndoneWrites(), "write"), next), nil
}

func promote(ctx context.Context, e *engineCall) (string, error) {
	if point := e.action.action.Spec.RecoveryPoint; point != nil {
		return promoteTo(ctx, e, point)
	}
	force := e.action.action.Spec.Force
	response, err := e.client.Promote(ctx, &sidecarpb.PromoteRequest{Group: e.group(), Force: force})
	if loss := response.GetLoss(); loss != nil && force {
		return "primary; " + loss.GetText(), err
	}
	return "primary; nothing was lost", err
}

// reprotect waits until the other site has a whole copy that follows. It asks for nothing but the end of a suspension:
// what a site gives up is decided at that site.
func reprotect(ctx context.Context, e *engineCall) (string, error) {
	g, err := e.refresh(ctx)
	if err != nil {
		return "", err
	}
	peer := g.GetPeer()
	switch {
	case !engine.Serves(g):
		return "", fmt.Errorf("group %s is not primary here: make the action at %s", g.GetName(),
			cmp.Or(peer, "the primary site"))
	case peer == "":
		return "", fmt.Errorf("group %s replicates to no site: label the namespace (%s), or see spec.remoteSite",
			g.GetName(), v1alpha1.LabelReplicateTo)
	case suspended(g):
		if _, err := e.client.Resume(ctx, &sidecarpb.ResumeRequest{Group: g.GetName()}); err != nil {
			return "", err
		}
		return "", waitFor("group %s was suspended and is resumed", g.GetName())
	case g.GetState() == sidecarpb.GroupState_GROUP_STATE_DIVERGED:
		return "", waitFor("both sites took writes in group %s; at %s, if that site is to give way: "+
			"kubectl slipstream yield %s", g.GetName(), peer, e.action.action.Spec.Group)
	case g.GetState() == sidecarpb.GroupState_GROUP_STATE_SYNCING:
		return "", waitFor("group %s is copied to %s: %d of %s", g.GetName(), peer, g.GetSyncDoneBytes(),
			words.Count(g.GetSyncTotalBytes(), "byte"))
	case g.GetState() != sidecarpb.GroupState_GROUP_STATE_STREAMING || !g.GetConnected():
		return "", waitFor("group %s is %s: %s", g.GetName(), g.GetState().Word(),
			cmp.Or(g.GetStateReason(), "waiting for "+peer))
	}
	message := "the copy at " + peer + " is whole and follows"
	if loss := g.GetLoss(); loss != nil {
		message += "; the failover before: " + loss.GetText()
	}
	return message, nil
}

// verifyToken tells one comparison from the next.
func verifyToken(g *sidecarpb.GroupStatus) string {
	return fmt.Sprint(g.GetVerify().GetFinishedUnixNanos())
}

// beforeVerify waits for a comparison that runs: its ordinal is from before the action.
func beforeVerify(ctx context.Context, e *engineCall) (string, error) {
	g, err := e.refresh(ctx)
	if err == nil && g.GetVerify().GetRunning() {
		err = waitFor("another comparison of group %s runs", g.GetName())
	}
	return verifyToken(g), err
}

// verify begins a comparison, unless one has ended or runs since the step began. A comparison that was interrupted, by
// the link or a restart of the replicator, is begun again.
func verify(ctx context.Context, e *engineCall) (string, error) {
	g, err := e.refresh(ctx)
	if err != nil {
		return "", err
	}
	v := g.GetVerify()
	switch {
	case v.GetRunning():
		return "", waitFor("group %s is compared: %d of %s", g.GetName(), v.GetDoneBytes(),
			words.Count(v.GetTotalBytes(), "byte"))
	case verifyToken(g) != e.before:
		e.action.compared(g)
		return verifyMessage(v), nil
	}
	_, err = e.client.Verify(ctx, &sidecarpb.VerifyRequest{Group: g.GetName()})
	switch {
	case err == nil && v.GetError() != "":
		return "", waitFor("the comparison of group %s failed and is begun again: %s", g.GetName(), v.GetError())
	case err == nil:
		return "", waitFor("the comparison of group %s begins", g.GetName())
	case e.again && status.Code(err) == codes.FailedPrecondition:
		return "", errWait{err} // it is about to run, or the connection it needs is gone
	}
	return "", err
}

// compared adds what a comparison found to the result.
func (a *run) compared(g *sidecarpb.GroupStatus) {
	v := g.GetVerify()
	found := int64(min(v.GetDifferenceCount(), math.MaxInt64))
	if a.status.Result.Differences != nil {
		found += *a.status.Result.Differences
	}
	a.status.Result.Differences = &found
	a.point(g.GetName(), v.GetOrdinal(), nil)
}

// point puts an ordinal into the result.
func (a *run) point(group string, ordinal uint64, nanos *int64) {
	p := v1alpha1.ActionPoint{Group: group, Ordinal: int64(min(ordinal, math.MaxInt64))}
	if nanos != nil {
		t := metav1.NewMicroTime(time.Unix(0, *nanos))
		p.Time = &t
	}
	points := slices.DeleteFunc(a.status.Result.Points, func(old v1alpha1.ActionPoint) bool { return old.Group == group })
	a.status.Result.Points = append(points, p)
}

func verifyMessage(v *sidecarpb.VerifyStatus) string {
	if v.GetDifferenceCount() == 0 {
		return fmt.Sprintf("both sites are equal at ordinal %d", v.GetOrdinal())
	}
	var named []string
	for _, d := range v.GetDifferences()[:min(len(v.GetDifferences()), maxNamedExtents)] {
		named = append(named, fmt.Sprintf("volume %s at byte %d", d.GetVolumeId(), d.GetOffsetBytes()))
	}
	return fmt.Sprintf("%s %s at ordinal %d, among them %s", words.Count(v.GetDifferenceCount(), "extent"),
		words.Choose(v.GetDifferenceCount(), "differs", "differ"), v.GetOrdinal(),
		strings.Join(named, ", "))
}

// equalSites fails an action that found differences.
func equalSites(a *run) error {
	found := a.status.Result.Differences
	if found == nil || *found == 0 {
		return nil
	}
	var where []string
	for _, step := range a.status.Steps {
		where = append(where, strings.TrimPrefix(step.Name, "Verify ")+": "+step.Message)
	}
	return fmt.Errorf("the sites differ: %s; on the node of the site whose extents are wrong: slipctl group repair",
		strings.Join(where, "; "))
}

// errNoBookmark: the group has no bookmark of that label.
var errNoBookmark = errors.New("no such bookmark")

func findBookmark(ctx context.Context, e *engineCall) (*sidecarpb.Bookmark, error) {
	points, err := e.client.GroupPoints(ctx, &sidecarpb.GroupPointsRequest{Group: e.group()})
	if err != nil {
		return nil, err
	}
	for _, b := range points.GetBookmarks() {
		if b.GetLabel() == e.action.action.Spec.Bookmark {
			return b, nil
		}
	}
	return nil, errNoBookmark
}

// beforeBookmark refuses a label that is taken: the one that is there afterwards is then this action's.
func beforeBookmark(ctx context.Context, e *engineCall) (string, error) {
	switch b, err := findBookmark(ctx, e); {
	case err == nil:
		return "", fmt.Errorf("group %s has a bookmark %s already, at ordinal %d: choose another label", e.group(),
			b.GetLabel(), b.GetPoint().GetOrdinal())
	case !errors.Is(err, errNoBookmark):
		return "", err
	}
	return "absent", nil
}

func bookmark(ctx context.Context, e *engineCall) (string, error) {
	label := e.action.action.Spec.Bookmark
	b, err := e.client.BookmarkGroup(ctx, &sidecarpb.BookmarkGroupRequest{Group: e.group(), Label: label})
	if e.again && status.Code(err) == codes.AlreadyExists {
		b, err = findBookmark(ctx, e) // the call was made, and its answer was not seen
	}
	if err != nil {
		return "", err
	}
	e.action.point(e.group(), b.GetPoint().GetOrdinal(), b.GetPoint().UnixNanos)
	return fmt.Sprintf("bookmark %s at ordinal %d", label, b.GetPoint().GetOrdinal()), nil
}
