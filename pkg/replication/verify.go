package replication

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/changemap"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/tokenbucket"
	"github.com/slipstream-storage/slipstream/pkg/untrusted"
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
	case v.running || v.wanted != nil:
		return fmt.Errorf("%w: a comparison of group %s with its copy runs; wait until it ends (slipctl group status %s)",
			core.ErrPrecondition, v.g.Name(), v.g.Name())
	case v.port == nil || !v.port.supported:
		return fmt.Errorf("%w: the peer of group %s is of a release that does not compare; upgrade it", core.ErrPrecondition,
			v.g.Name())
	}
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
		v.running, v.doneBytes, v.totalBytes, v.lastAttempt = true, 0, 0, now
	}
	return scope
}

func (v *verification) ended(err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.running, v.repairing, v.failure = false, false, ""
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

// verifyRun is one comparison at the primary.
type verifyRun struct {
	g      *Group
	port   *verifyPort
	scope  *verifyScope
	set    *preserved
	bucket tokenbucket.Bucket
	buf    []byte
	found  []MemberExtent
	count  uint64
	// replaced are the extents of this site that got the peer's content.
	replaced []MemberExtent
}

func (r *verifyRun) compare(ctx context.Context) error {
	g := r.g
	end := &linkpb.VerifyEnd{}
	defer func() {
		g.verification.drop(r.set)
		// Without an answer, and also after an error: the secondary drops what it preserved.
		_ = r.port.send(ctx, &linkpb.VerifyRequest{Request: &linkpb.VerifyRequest_End{End: end}})
	}()
	if err := r.begin(ctx); err != nil {
		return err
	}
	if err := r.extents(ctx); err != nil {
		return err
	}
	ordinal := r.set.record.Ordinal
	if len(r.replaced) > 0 {
		return nil // the next comparison has the result
	}
	slices.SortFunc(r.found, func(a, b MemberExtent) int {
		return cmp.Or(cmp.Compare(a.Member, b.Member), cmp.Compare(a.Extent, b.Extent))
	})
	g.verification.store(ordinal, r.scope, r.found, r.count)
	end.Complete, end.Ordinal, end.DifferenceCount = true, ordinal, r.count
	end.Extents, end.Scope = extentsToWire(r.found), extentsToWire(r.scope.extents)
	if r.count > 0 {
		klog.ErrorS(nil, "The images of both sites differ", "group", g.Name(), "ordinal", ordinal, "extents", r.count)
	} else {
		klog.InfoS("The images of both sites are equal", "group", g.Name(), "ordinal", ordinal)
	}
	return nil
}

// begin preserves the images of both sites at one ordinal.
func (r *verifyRun) begin(ctx context.Context) error {
	g := r.g
	held, err := r.port.ask(ctx, &linkpb.VerifyRequest{Request: &linkpb.VerifyRequest_Hold{Hold: &linkpb.VerifyHold{}}})
	if err != nil {
		return err
	}
	r.set, err = g.cuts.preserve(ctx, preserveRequest{owner: ownerVerify, full: preserveOrLose,
		position: g.log.durablePosition})
	if err != nil {
		return err
	}
	record := &r.set.record
	if held.AppliedOrdinal > record.Ordinal {
		return fmt.Errorf("the peer has applied ordinal %d, this site has %d", held.AppliedOrdinal, record.Ordinal)
	}
	answer, err := r.port.ask(ctx, &linkpb.VerifyRequest{Request: &linkpb.VerifyRequest_At{
		At: &linkpb.VerifyAt{Ordinal: record.Ordinal, TimelineId: record.Timeline}}})
	if err != nil {
		return err
	}
	theirs := map[uint32]int64{}
	for _, m := range answer.Members {
		theirs[m.GetIndex()] = m.GetSizeBytes()
	}
	total := int64(0)
	for _, m := range record.Members {
		if size, ok := theirs[m.Index]; !ok || size != m.SizeBytes {
			return fmt.Errorf("volume %s has %d bytes here and %d at the peer at ordinal %d", m.VolumeID, m.SizeBytes, size,
				record.Ordinal)
		}
		total += m.SizeBytes
	}
	if len(theirs) != len(record.Members) {
		return fmt.Errorf("the peer has %d volumes at ordinal %d, this site %d", len(theirs), record.Ordinal,
			len(record.Members))
	}
	if r.scope.partial() {
		total = int64(len(r.scope.extents)) * changemap.ExtentBytes
	}
	g.verification.mu.Lock()
	g.verification.totalBytes = total
	g.verification.mu.Unlock()
	return nil
}

// extents compares all extents of the scope.
func (r *verifyRun) extents(ctx context.Context) error {
	for _, e := range r.scope.extents {
		image := memberImage(r.set, e.Member)
		if image == nil || e.Extent >= extentsOf(image.Size()) {
			continue // the volume has left
		}
		if err := r.run(ctx, image, e.Extent, 1); err != nil {
			return err
		}
	}
	if r.scope.partial() {
		return r.set.check()
	}
	for _, image := range r.set.images {
		all := extentsOf(image.Size())
		for first := uint64(0); first < all; first += verifyRunExtents {
			if err := r.run(ctx, image, first, min(verifyRunExtents, all-first)); err != nil {
				return err
			}
		}
	}
	return r.set.check()
}

// run compares a run of extents.
func (r *verifyRun) run(ctx context.Context, image *preservedImage, first, count uint64) error {
	ours, read, err := hashRun(image, first, count, r.buf)
	if err != nil {
		return err
	}
	if err := r.throttle(ctx, read); err != nil {
		return err
	}
	index := image.member.Index
	digest, err := r.compareData(ctx, index, first, count, linkpb.VerifyCompare_DIGEST)
	if err != nil {
		return err
	}
	if own := digestOf(ours); string(digest) != string(own[:]) {
		data, err := r.compareData(ctx, index, first, count, linkpb.VerifyCompare_HASHES)
		if err != nil {
			return err
		}
		theirs, err := unpackHashes(data, count)
		if err != nil {
			return err
		}
		for i := range ours {
			if ours[i] == theirs[i] {
				continue
			}
			if err := r.differs(ctx, image, first+uint64(i), theirs[i]); err != nil {
				return err
			}
		}
	}
	g := r.g
	g.verification.mu.Lock()
	defer g.verification.mu.Unlock()
	g.verification.doneBytes = min(g.verification.totalBytes, g.verification.doneBytes+int64(count)*changemap.ExtentBytes)
	return r.set.check()
}

func (r *verifyRun) compareData(ctx context.Context, member uint32, first, count uint64,
	want linkpb.VerifyCompare_Want) ([]byte, error) {
	answer, err := r.port.ask(ctx, &linkpb.VerifyRequest{Request: &linkpb.VerifyRequest_Compare{
		Compare: &linkpb.VerifyCompare{Member: member, First: first, Count: uint32(count), Want: want}}})
	return answer.GetData(), err
}

// throttle waits until the bytes that were read are paid for.
func (r *verifyRun) throttle(ctx context.Context, n int64) error {
	r.g.mu.Lock()
	rate := cmp.Or(r.g.core.Meta.VerifyBytesPerSecond, defaultVerifyBytesPerSecond)
	r.g.mu.Unlock()
	r.bucket.SetRate(monotonicNanos(), rate, verifyBurst)
	paid := time.NewTimer(r.bucket.Take(monotonicNanos(), n))
	defer paid.Stop()
	select {
	case <-paid.C:
		return nil
	case <-r.port.ended:
		return errStreamEnded
	case <-ctx.Done():
		return ctx.Err()
	}
}

// differs notes an extent that differs, or replaces it.
func (r *verifyRun) differs(ctx context.Context, image *preservedImage, extent uint64, theirs extentHash) error {
	e := MemberExtent{Member: image.member.Index, Extent: extent}
	if r.scope.take {
		return r.takeExtent(ctx, image, e, theirs)
	}
	r.count++
	if len(r.found) < maxKeptDifferences {
		r.found = append(r.found, e)
	}
	klog.ErrorS(nil, "An extent differs between the sites", "group", r.g.Name(), "volume", image.member.VolumeID,
		"offset", int64(extent)*changemap.ExtentBytes, "ordinal", r.set.record.Ordinal)
	return nil
}

// verifyPort is the way of comparisons through one stream to the peer. One goroutine asks at a time.
type verifyPort struct {
	supported bool
	// out has what the sender is to send, wake wakes it.
	out  chan *linkpb.ToSecondary
	wake signal
	in   chan *linkpb.VerifyAnswer
	// ended is closed with the stream.
	ended chan struct{}
	step  uint64
}

var errStreamEnded = errors.New("the stream to the peer ended")

func (p *verifyPort) send(ctx context.Context, q *linkpb.VerifyRequest) error {
	p.step++
	q.Step = p.step
	select {
	case p.out <- &linkpb.ToSecondary{Message: &linkpb.ToSecondary_Verify{Verify: q}}:
		p.wake.send()
		return nil
	case <-p.ended:
		return errStreamEnded
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ask sends a request and waits for its answer.
func (p *verifyPort) ask(ctx context.Context, q *linkpb.VerifyRequest) (*linkpb.VerifyAnswer, error) {
	if err := p.send(ctx, q); err != nil {
		return nil, err
	}
	timeout := time.NewTimer(verifyPatience)
	defer timeout.Stop()
	for {
		select {
		case a := <-p.in:
			switch {
			case a.Step != q.Step: // of a request that was given up
			case a.Error != "":
				return nil, fmt.Errorf("the peer says: %s", untrusted.Reason(a.Error))
			default:
				return a, nil
			}
		case <-p.ended:
			return nil, errStreamEnded
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-timeout.C:
			return nil, fmt.Errorf("the peer has not answered for %v", verifyPatience)
		}
	}
}

// answered takes an answer of the peer. One that was not asked for is dropped.
func (p *verifyPort) answered(a *linkpb.VerifyAnswer) {
	select {
	case p.in <- a:
	default:
	}
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

func (p *verifyPort) end() { close(p.ended) }
