package replication

import (
	"context"
	"fmt"
	"time"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/replication/changemap"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
)

// A comparison reads the images of both sites at one ordinal, and compares hashes of extents. It is the primary's:
//
//	hold     the secondary stops applying for a moment, and says how far its images are
//	choose   the primary preserves its images at its durable end, which is not below that (preserved.go)
//	at       the secondary applies exactly to that ordinal, preserves its images, and applies on
//	compare  run by run: one digest of each side; only if they differ, a hash for each extent
//	end      both drop what they preserved, and remember what was found
//
// Writers, replication and apply go on. What is compared is what each image has on its disk, as the page cache shows
// it; the journal is not compared, its records have checksums. Holes are zeros.
//
// A comparison changes no data. One that is interrupted (the link, a restart, a member that leaves) has no result.
const (
	// ownerVerify is what preserved images of comparisons are for.
	ownerVerify preservedOwner = "verify"
	// defaultVerifyBytesPerSecond is how fast one reads, if the settings do not say.
	defaultVerifyBytesPerSecond = 32 << 20
	// verifyBurst is how much time's worth of reading an idle comparison saves up.
	verifyBurst = 100 * time.Millisecond
	// verifyPatience is how long the primary waits for an answer.
	verifyPatience = time.Minute
	// verifyTick is how often the schedule is looked at, and verifyRetry the time between attempts that fail.
	verifyTick  = time.Second
	verifyRetry = time.Minute
)

// verifyScope is what a comparison is of.
type verifyScope struct {
	// extents are compared alone; nil for all.
	extents []MemberExtent
	// take: this site's extents are replaced by those of the peer where they differ.
	take bool
	// resend: these extents are sent to the peer before they are compared.
	resend bool
}

func (s *verifyScope) partial() bool { return len(s.extents) > 0 }

// Verify begins a comparison of both sites. It returns when it is about to run; Status tells the rest. Errors are
// core.ErrPrecondition.
func (g *Group) Verify() error { return g.verification.start() }

// running reports whether a comparison runs, or is about to.
func (v *verification) running() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.phase != verifyIdle
}

// start is Group.Verify.
func (v *verification) start() error { return v.request(&verifyScope{}) }

// request asks for a comparison, or says why there can be none now.
func (v *verification) request(scope *verifyScope) error {
	if err := v.may(); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case v.phase != verifyIdle:
		return fmt.Errorf("%w: a comparison of group %s with its copy runs; wait until it ends (slipctl group status %s)",
			core.ErrPrecondition, v.g.Name(), v.g.Name())
	case v.port == nil || !v.port.supported:
		return fmt.Errorf("%w: the peer of group %s is of a release that does not compare; upgrade it", core.ErrPrecondition,
			v.g.Name())
	}
	v.phase.want()
	v.wanted, v.failure = scope, ""
	v.work.send()
	return nil
}

// may says why this site can begin no comparison.
func (v *verification) may() error {
	g := v.g
	s := g.Status()
	switch {
	case s.Role == core.RoleSecondary:
		return fmt.Errorf("%w: group %s is secondary at %s; its primary compares: run it at %s (slipctl group verify %s)",
			core.ErrPrecondition, s.Name, g.cfg.Site, s.Peer, s.Name)
	case s.Peer == "":
		return fmt.Errorf("%w: group %s has no peer, so there is no copy to compare with", core.ErrPrecondition, s.Name)
	case !s.Connected:
		return fmt.Errorf("%w: group %s is not connected to %s (%s: %s)", core.ErrPrecondition, s.Name, s.Peer, s.State,
			s.StateReason)
	case s.State == core.StateSyncing || g.members.needsSync():
		return fmt.Errorf("%w: the copy of group %s at %s is in a sync; wait until it ends", core.ErrPrecondition, s.Name,
			s.Peer)
	}
	return nil
}

// loop runs comparisons that are asked for, and those of the schedule.
func (v *verification) loop(ctx context.Context) {
	g := v.g
	ticker := time.NewTicker(verifyTick)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-v.work:
		}
		scope := v.next()
		if scope == nil {
			continue
		}
		err := v.compare(ctx, scope)
		v.ended(err)
		if err != nil && ctx.Err() == nil {
			klog.ErrorS(err, "Comparison with the peer failed; nothing was found out", "group", g.Name())
		}
	}
}

// next is the comparison to run now; nil for none.
func (v *verification) next() *verifyScope {
	v.g.mu.Lock()
	every := time.Duration(v.g.core.Meta.VerifyEveryMillis) * time.Millisecond
	v.g.mu.Unlock()
	due, last := false, v.known()
	now := v.g.cfg.Now()
	if every > 0 {
		due = last.UnixNanos == 0 || now.Sub(time.Unix(0, last.UnixNanos)) >= every || now.UnixNano() < last.UnixNanos
	}
	if due && v.may() != nil {
		due = false
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	scope := v.wanted
	if scope == nil && due && (v.lastAttempt.IsZero() || now.Sub(v.lastAttempt).Abs() >= verifyRetry) &&
		v.port != nil && v.port.supported {
		scope = &verifyScope{}
	}
	v.wanted = nil
	if scope != nil {
		v.phase.begin()
		v.doneBytes, v.totalBytes, v.lastAttempt = 0, 0, now
	}
	return scope
}

func (v *verification) ended(err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.phase.end()
	v.repairing, v.failure = false, ""
	if err != nil {
		v.failure = err.Error()
	}
}

// compare prepares a comparison, and runs it.
func (v *verification) compare(ctx context.Context, scope *verifyScope) error {
	g := v.g
	v.mu.Lock()
	port := v.port
	v.mu.Unlock()
	if port == nil {
		return errStreamEnded
	}
	if scope.resend {
		if err := v.resend(ctx, port, scope.extents); err != nil {
			return err
		}
	}
	run := &verifyRun{g: g, port: port, scope: scope, buf: make([]byte, changemap.ExtentBytes)}
	err := run.compare(ctx)
	if err == nil && scope.take && len(run.replaced) > 0 {
		// Once more, since what was written is what counts.
		err = (&verifyRun{g: g, port: port, scope: &verifyScope{extents: scope.extents}, buf: run.buf}).compare(ctx)
	}
	return err
}

// open makes a stream's port the group's, until close is called.
func (v *verification) open(p *verifyPort) (close func()) {
	v.mu.Lock()
	v.port = p
	v.mu.Unlock()
	return func() {
		v.mu.Lock()
		v.port = nil
		v.mu.Unlock()
		p.end()
	}
}
