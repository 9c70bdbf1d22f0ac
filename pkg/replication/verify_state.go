package replication

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/recordfile"
	"github.com/slipstream-storage/slipstream/pkg/replication/changemap"
	"github.com/slipstream-storage/slipstream/pkg/untrusted"
)

// What comparisons found is in a record file of the group's directory, kind "verified". It is for people, health and
// the schedule; a group whose file is missing or damaged was never compared.
const (
	verifiedName = "verified"
	verifiedKind = "verified"
	// maxKeptDifferences is how many differing extents are named. The rest is counted.
	maxKeptDifferences = 1024
	// maxShownDifferences is how many a status names.
	maxShownDifferences = 64
)

// MemberExtent is an extent of 64 KiB of a member.
type MemberExtent struct {
	Member uint32 `json:"member"`
	Extent uint64 `json:"extent"`
}

// verifiedRecord is the content of the file.
type verifiedRecord struct {
	// Peer is the site that was compared with; what was found with another one says nothing.
	Peer string `json:"peer"`
	// UnixNanos is when the last complete comparison of everything ended, by this site's clock; 0 for none.
	UnixNanos int64  `json:"unixNanos"`
	Ordinal   uint64 `json:"ordinal"`
	// UpdatedUnixNanos is when this was written, also by a comparison of some extents.
	UpdatedUnixNanos int64 `json:"updatedUnixNanos"`
	// Extents are the first of the Count extents that differ.
	Extents []MemberExtent `json:"extents,omitempty"`
	Count   uint64         `json:"count"`
}

// verification is what a group knows of comparisons, and the one that runs. It is safe for concurrent use; its lock
// takes no other lock but that of the file system.
type verification struct {
	g *Group

	mu     sync.Mutex
	record verifiedRecord
	// phase says whether a comparison runs; done and total are its bytes at the primary.
	phase       verifyPhase
	doneBytes   int64
	totalBytes  int64
	failure     string
	lastAttempt time.Time
	// wanted is the comparison that is asked for and has not begun; nil for none.
	wanted *verifyScope
	// port is of the stream to the peer; nil without one.
	port *verifyPort
	// repairing: extents of this site are being replaced, and no volume may be attached.
	repairing bool
	work      signal
}

// verifyPhase is what a site does about comparisons. Its changes return false, and change nothing, where they cannot be
// made.
//
//	idle -> wanted              a primary was asked for one
//	idle, wanted -> running     it runs: asked for, or by the schedule; at a secondary, when the primary begins
//	running -> idle             it has ended
type verifyPhase int

const (
	verifyIdle verifyPhase = iota
	verifyWanted
	verifyRunning
)

// String names the phase for people.
func (p verifyPhase) String() string {
	switch p {
	case verifyIdle:
		return "idle"
	case verifyWanted:
		return "wanted"
	case verifyRunning:
		return "running"
	}
	return fmt.Sprintf("verifyPhase(%d)", int(p))
}

func (p *verifyPhase) change(to verifyPhase, from ...verifyPhase) bool {
	if !slices.Contains(from, *p) {
		return false
	}
	*p = to
	return true
}

func (p *verifyPhase) want() bool  { return p.change(verifyWanted, verifyIdle) }
func (p *verifyPhase) begin() bool { return p.change(verifyRunning, verifyIdle, verifyWanted) }
func (p *verifyPhase) end() bool   { return p.change(verifyIdle, verifyRunning) }

func newVerification(g *Group) *verification { return &verification{g: g, work: newSignal()} }

// load reads what an earlier process found, and drops what it preserved.
func (v *verification) load() {
	var r verifiedRecord
	err := recordfile.Read(v.g.cfg.FS, v.g.path(verifiedName), verifiedKind, &r)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		klog.ErrorS(err, "What comparisons with the peer found is lost", "group", v.g.Name())
	}
	if err == nil {
		v.record = r
	}
	for _, p := range v.g.preserved.of(ownerVerify) {
		v.drop(p)
	}
}

// drop gives preserved images up.
func (v *verification) drop(p *preserved) {
	if p == nil {
		return
	}
	if err := v.g.preserved.drop(p); err != nil {
		klog.ErrorS(err, "Images of a comparison are not dropped; the next start does it", "group", v.g.Name())
	}
}

// store takes a result. One of some extents alone changes nothing but these.
func (v *verification) store(ordinal uint64, scope *verifyScope, found []MemberExtent, count uint64) {
	peer, now := v.g.peer(), v.g.cfg.Now().UnixNano()
	v.mu.Lock()
	defer v.mu.Unlock()
	next := verifiedRecord{Peer: peer, UnixNanos: now, Ordinal: ordinal, Extents: found, Count: count}
	if scope.partial() && v.record.Peer == peer {
		next = v.record
		for _, e := range scope.extents {
			if at := slices.Index(next.Extents, e); at >= 0 && !slices.Contains(found, e) {
				next.Extents = slices.Concat(next.Extents[:at], next.Extents[at+1:])
				next.Count--
			}
		}
	}
	next.UpdatedUnixNanos = now
	v.record = next
	err := v.g.cfg.Pool.WithReserve(func() error {
		return recordfile.Write(v.g.cfg.FS, v.g.path(verifiedName), verifiedKind, &next)
	})
	if err != nil {
		klog.ErrorS(err, "What a comparison found is not stored; after a restart it is not known", "group", v.g.Name())
	}
}

// known is the record, if it is of the present peer.
func (v *verification) known() verifiedRecord {
	peer := v.g.peer()
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.record.Peer != peer || peer == "" {
		return verifiedRecord{Peer: peer}
	}
	return v.record
}

// VerifyStatus says what comparisons of both sites found. A nil pointer is a value that is not known.
type VerifyStatus struct {
	// Running: DoneBytes of TotalBytes of the volumes are compared. A secondary knows only that one runs.
	Running               bool
	DoneBytes, TotalBytes int64
	// FinishedUnixNanos is when the last complete comparison ended, by this site's clock; Ordinal is the one that it
	// compared.
	FinishedUnixNanos *int64
	Ordinal           *uint64
	// UpdatedUnixNanos is when the result last changed, also by the comparison of some extents after a repair.
	UpdatedUnixNanos *int64
	// DifferenceCount extents differ; Differences are the first of them.
	DifferenceCount *uint64
	Differences     []VolumeRange
	// Error is why the last attempt failed; empty if it did not.
	Error string
}

// VolumeRange is a range of a volume.
type VolumeRange struct {
	VolumeID                 string
	OffsetBytes, LengthBytes int64
}

func (v *verification) status() VerifyStatus {
	r := v.known()
	v.mu.Lock()
	s := VerifyStatus{Running: v.phase == verifyRunning, DoneBytes: v.doneBytes, TotalBytes: v.totalBytes,
		Error: untrusted.Escape(v.failure, maxReasonBytes)}
	v.mu.Unlock()
	if r.UnixNanos == 0 {
		return s
	}
	s.UpdatedUnixNanos = &r.UpdatedUnixNanos
	s.FinishedUnixNanos, s.Ordinal, s.DifferenceCount = &r.UnixNanos, &r.Ordinal, &r.Count
	for _, e := range r.Extents {
		if len(s.Differences) == maxShownDifferences {
			break
		}
		if member := v.g.members.at(e.Member); member != nil {
			off := int64(e.Extent) * changemap.ExtentBytes
			s.Differences = append(s.Differences, VolumeRange{VolumeID: member.id, OffsetBytes: off,
				LengthBytes: max(0, min(changemap.ExtentBytes, member.Size()-off))})
		}
	}
	return s
}
