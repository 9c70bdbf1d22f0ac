package replication

import (
	"fmt"
	"slices"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/untrusted"
)

// What the messages of a peer say is checked here before a group decides anything by it, and what an earlier release
// stored of them when group.json is read. Members are checked by describe.

const maxInstanceBytes = 64

// checkTimelines is core.CheckTimelines for those of a message; the error wraps ErrInvalid.
func checkTimelines(wire []*linkpb.Timeline, limit int) error {
	if len(wire) > limit {
		return fmt.Errorf("%w: %s, site takes %d (--peer-max-timelines)", ErrInvalid,
			words.Count(len(wire), "timeline"), limit)
	}
	if _, err := core.CheckTimelines(timelinesFromWire(wire)); err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return nil
}

// checkHello says what is wrong with a Hello by itself, whatever group it is about. One of another protocol version is
// not looked at: the answer to it is that.
func (c *Config) checkHello(hello *linkpb.Hello) error {
	if _, err := parseID(hello.GetGroupId()); err != nil {
		return err
	}
	if hello.GetProtocolVersion() != protocolVersion {
		return nil
	}
	if err := checkTimelines(hello.GetTimelines(), c.Limits.Timelines); err != nil {
		return fmt.Errorf("group %s: %w", untrusted.Escape(hello.GetGroupName(), untrusted.MaxNameBytes), err)
	}
	return nil
}

// checkRanges refuses records of ranges that no volume can have, of members or not. Whether a range is within its
// member is known only when the records before it are carried out.
func checkRanges(records []link.Record) error {
	for i := range records {
		if h := &records[i].Header; isContent(h.Kind) && !touchesImage(h) {
			return fmt.Errorf("%w: record %d: %s of %s at %d of member %d: %w", ErrInvalid, i, h.Kind,
				words.Count(h.Length, "byte"), h.Offset, h.Volume, blockdev.ErrOutOfRange)
		}
	}
	return nil
}

// checkWelcome says what is wrong with the answer to a Hello.
func checkWelcome(peer string, w *linkpb.Welcome) error {
	for what, text := range map[string]string{
		"instance": w.GetInstance(), "session": w.GetSession().GetId(), "site of the session": w.GetSession().GetPrimary(),
		"yield": w.GetYield().GetId(),
	} {
		if err := untrusted.CheckText(what, text, maxInstanceBytes); err != nil {
			return fmt.Errorf("%w: %s answered Hello: %w", ErrInvalid, peer, err)
		}
	}
	if n := w.GetSession().GetNumber(); n > core.MaxSession {
		return fmt.Errorf("%w: %s answered Hello: session %d", ErrInvalid, peer, n)
	}
	if w.GetPlace().GetOffset() < 0 {
		return fmt.Errorf("%w: %s answered Hello: its journal ends at offset %d", ErrInvalid, peer, w.GetPlace().GetOffset())
	}
	return nil
}

// checkBegin says what is wrong with the beginning of a session.
func checkBegin(peer string, b *linkpb.BeginSession) error {
	err := untrusted.CheckText("session", b.GetId(), maxInstanceBytes)
	if err == nil && (b.GetNumber() == 0 || b.GetNumber() > core.MaxSession || b.GetId() == "") {
		err = fmt.Errorf("session %d with identifier %q", b.GetNumber(), b.GetId())
	}
	if err != nil {
		return fmt.Errorf("%w: %s begins a session: %w", ErrInvalid, peer, err)
	}
	return nil
}

// refusalOf is what core hears of a refusal. Its text is another site's, and is kept and shown: it is cut and escaped.
// One whose timelines are malformed is an error, and nothing of it is kept.
func refusalOf(r *linkpb.Refusal) (core.Refused, error) {
	if err := checkTimelines(r.GetTimelines(), core.MaxTimelines); err != nil {
		return core.Refused{}, fmt.Errorf("%w (%s), and its timelines are malformed: %w", errRefused,
			untrusted.Reason(r.GetMessage()), err)
	}
	return core.Refused{
		Reason: refusalFromWire(r.GetReason()), Message: untrusted.Reason(r.GetMessage()), Fork: r.GetForkOrdinal(),
		PeerTimelines: timelinesFromWire(r.GetTimelines()), PeerPrimary: r.GetPrimary(),
	}, nil
}

// recoverMeta brings what an earlier release may have stored of a peer's messages to what this one would have.
//
// Timelines behind one whose identifier no journal can hold go: the peer announced them, and there can be no record of
// them, since a segment has its timeline's identifier in binary. The group is then where it was before that message.
// Other faults of the list stay, and are an error: records may depend on them. path is for the log.
func recoverMeta(path string, m *core.Meta) error {
	sound, err := core.CheckTimelines(m.Timelines)
	if err != nil && sound > 0 && sound < len(m.Timelines) && !core.IsTimelineID(m.Timelines[sound].ID) {
		klog.ErrorS(err, "The last timelines of a group are dropped: its peer announced them, and nothing was written on "+
			"them", "file", path,
			"kept", sound, "dropped", len(m.Timelines)-sound)
		m.Timelines, err = slices.Clone(m.Timelines[:sound]), nil
	}
	if err != nil {
		return err
	}
	if d := m.Divergence; d != nil {
		d.Text, d.PeerTimeline, d.Relation = untrusted.Reason(d.Text), untrusted.Escape(d.PeerTimeline,
			maxInstanceBytes), untrusted.Escape(d.Relation, maxInstanceBytes)
	}
	if m.Loss != nil {
		m.Loss.Text = untrusted.Reason(m.Loss.Text)
	}
	return nil
}
