package replication

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/changemap"
	"github.com/slipstream-storage/slipstream/pkg/tokenbucket"
	"github.com/slipstream-storage/slipstream/pkg/untrusted"
)

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
	r.set, err = g.preserved.take(ctx, preserveRequest{owner: ownerVerify, full: preserveOrLose,
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
			return fmt.Errorf("volume %s has %s here and %d at the peer at ordinal %d", m.VolumeID,
				words.Count(m.SizeBytes, "byte"), size, record.Ordinal)
		}
		total += m.SizeBytes
	}
	if len(theirs) != len(record.Members) {
		return fmt.Errorf("the peer has %s at ordinal %d, this site %d", words.Count(len(theirs), "volume"),
			record.Ordinal, len(record.Members))
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

func (p *verifyPort) end() { close(p.ended) }

// takeExtent writes what the peer has in an extent. No volume is attached, so nothing was written since the ordinal
// that is compared.
func (r *verifyRun) takeExtent(ctx context.Context, image *preservedImage, e MemberExtent, theirs extentHash) error {
	v := r.g.members.at(e.Member)
	if v == nil {
		return fmt.Errorf("volume %s left the group while it was repaired", image.member.VolumeID)
	}
	data, err := r.compareData(ctx, e.Member, e.Extent, 1, linkpb.VerifyCompare_CONTENT)
	if err != nil {
		return err
	}
	off := int64(e.Extent) * changemap.ExtentBytes
	if want := min(changemap.ExtentBytes, image.Size()-off); int64(len(data)) != want || hashOf(data) != theirs {
		return fmt.Errorf("%w: the peer sent %s of volume %s at %d that are not what it compared", ErrInvalid,
			words.Count(len(data), "byte"), v.id, off)
	}
	if !r.g.verification.blocksAttach() {
		return fmt.Errorf("the repair of volume %s was given up", v.id)
	}
	if _, err := v.WriteAt(data, off); err != nil {
		return err
	}
	if err := v.Flush(); err != nil {
		return err
	}
	klog.InfoS("Extent replaced by the peer's", "group", r.g.Name(), "volume", v.id, "offset", off)
	r.replaced = append(r.replaced, e)
	return nil
}

// repairAsked is the primary's side of askForRepair. A peer that asks for what it has costs the link an extent.
func (v *verification) repairAsked(q *linkpb.RepairRequest) {
	list := v.fromWire(q.GetExtents())
	if len(list) == 0 {
		return
	}
	if err := v.request(&verifyScope{extents: list, resend: true}); err != nil {
		klog.ErrorS(err, "The peer's request to send extents again is not followed; it may ask again", "group", v.g.Name())
	}
}
