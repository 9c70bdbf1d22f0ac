package replication

import (
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
	"github.com/slipstream-storage/slipstream/pkg/recordfile"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/untrusted"
)

// Timelines that no group can have are refused with the reason, and change nothing: the group goes on, also after a
// restart, and the same peer is taken when it says something sound.
func TestMalformedTimelinesOfAPeer(t *testing.T) {
	net := link.NewNetwork(nil)
	t.Cleanup(net.Close)
	s := newTestSite(t, net, "b", func(c *Config) { c.Limits.Timelines = 10 })
	hello := func(timelines ...*linkpb.Timeline) *linkpb.Hello {
		h := goodHello()
		h.DurableOrdinal = 0
		h.Timelines = append(h.Timelines, timelines...)
		return h
	}
	if answer := answerTo(t, net, "a", "b", hello()); answer.GetWelcome() == nil {
		t.Fatalf("%v", answer)
	}
	for want, timelines := range map[string][]*linkpb.Timeline{
		`malformed identifier "main"`: {{Id: "main", ForkOrdinal: 1}},
		"malformed identifier":        {nil},
		"before the one":              {{Id: uuid.NewString(), ForkOrdinal: 9}, {Id: uuid.NewString(), ForkOrdinal: 8}},
		"of an earlier one":           {{Id: goodHello().Timelines[0].Id}},
		"11 timelines":                make([]*linkpb.Timeline, 10),
	} {
		answer := answerTo(t, net, "a", "b", hello(timelines...))
		if text := answer.GetRefusal().GetMessage(); !strings.Contains(text, want) {
			t.Errorf("%s: the answer is %v", want, answer)
		}
		if state := s.group("shop").Status(); state.State == "failed" || state.Timeline != goodHello().Timelines[0].Id {
			t.Fatalf("%s: %s, %s, timeline %s", want, state.State, state.StateReason, state.Timeline)
		}
		s.restart()
	}
	if answer := answerTo(t, net, "a", "b", hello(&linkpb.Timeline{Id: uuid.NewString()})); answer.GetWelcome() == nil {
		t.Fatalf("%v", answer)
	}
	stillWhole(t, s)
}

// What an earlier release took from a peer without a look: the part that nothing can depend on goes, and the group
// opens; other faults cost the group alone, by name.
func TestMalformedTimelinesOnDisk(t *testing.T) {
	for name, tc := range map[string]struct {
		add  []core.Timeline
		want string // why it does not open
	}{
		"a name":          {[]core.Timeline{{ID: "main", ForkOrdinal: 3}}, ""},
		"sound behind it": {[]core.Timeline{{ID: "", ForkOrdinal: 3}, {ID: uuid.NewString(), ForkOrdinal: 4}}, ""},
		"descending": {[]core.Timeline{{ID: uuid.NewString(), ForkOrdinal: 9}, {ID: uuid.NewString(), ForkOrdinal: 8}},
			"timeline 3 of 3 forks at ordinal 8, before the one that it continues (9)"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newTestSite(t, link.NewNetwork(nil), "a", nil)
			g := s.createGroup("g", "", 1, 1<<20, nil)
			mustWrite(t, volumeOf(t, g, "v0"), 0, block('x', 4096))
			mustFlush(t, volumeOf(t, g, "v0"))
			path, timeline := g.path(core.MetaFile), g.Status().Timeline
			s.kill()
			meta, err := loadMeta(s.fs, path)
			if err != nil {
				t.Fatal(err)
			}
			meta.Timelines = append(meta.Timelines, tc.add...)
			meta.Divergence = &core.Divergence{Relation: "i-diverged", Text: strings.Repeat("\x1b", 5<<20)}
			if err := recordfile.Write(s.fs, path, core.MetaKind, &meta); err != nil {
				t.Fatal(err)
			}
			s.open()
			if tc.want != "" {
				if reason := s.site.Broken()[g.dir]; reason == nil || !strings.Contains(reason.Error(), tc.want) ||
					!strings.Contains(reason.Error(), path) {
					t.Fatalf("broken: %v", s.site.Broken())
				}
				return
			}
			g = s.group("g")
			if st := g.Status(); st.Timeline != timeline || content(t, volumeOf(t, g, "v0"))[0] != 'x' {
				t.Fatalf("%+v", st)
			}
			if text := g.core.Meta.Divergence.Text; len(text) > untrusted.MaxReasonBytes || strings.Contains(text, "\x1b") {
				t.Fatalf("the text of %d bytes is kept", len(text))
			}
			mustWrite(t, volumeOf(t, g, "v0"), 0, block('y', 4096))
			mustFlush(t, volumeOf(t, g, "v0"))
			s.restart()
			if content(t, volumeOf(t, s.group("g"), "v0"))[0] != 'y' {
				t.Fatal("the write is lost")
			}
		})
	}
}

// The text of a peer is not kept, logged or shown as it comes: whatever it is, status is small and can be printed.
func TestTextOfAPeerIsCutAndEscaped(t *testing.T) {
	huge := strings.Repeat("\x1b[2J\n", 1<<20)
	for name, answer := range map[string]func(link.PeerStream) error{
		"a refusal": func(s link.PeerStream) error {
			return s.Send(&linkpb.ToPrimary{Message: &linkpb.ToPrimary_Refusal{Refusal: &linkpb.Refusal{
				Reason: linkpb.Refusal_REASON_FAILED, Message: huge,
			}}})
		},
		"a divergence": func(s link.PeerStream) error {
			return s.Send(&linkpb.ToPrimary{Message: &linkpb.ToPrimary_Refusal{Refusal: &linkpb.Refusal{
				Reason: linkpb.Refusal_REASON_DIVERGED, Message: huge,
			}}})
		},
		"malformed timelines": func(s link.PeerStream) error {
			return s.Send(&linkpb.ToPrimary{Message: &linkpb.ToPrimary_Refusal{Refusal: &linkpb.Refusal{
				Reason: linkpb.Refusal_REASON_STALE_TIMELINE, Message: huge, Timelines: []*linkpb.Timeline{{Id: huge}},
			}}})
		},
		"an instance": func(s link.PeerStream) error {
			return s.Send(&linkpb.ToPrimary{Message: &linkpb.ToPrimary_Welcome{Welcome: &linkpb.Welcome{Instance: huge}}})
		},
		"a status": func(link.PeerStream) error { return status.Error(codes.Internal, huge) },
	} {
		t.Run(name, func(t *testing.T) {
			net := link.NewNetwork(nil)
			t.Cleanup(net.Close)
			s := newTestSite(t, net, "a", func(c *Config) { c.RedialInterval = time.Hour })
			net.Attach("b", link.HandlerFunc(func(stream link.PeerStream) error {
				if _, err := stream.Recv(); err != nil {
					return err
				}
				return answer(stream)
			}))
			g := s.createGroup("g", "b", 0, 0, nil)
			eventually(t, "the answer came", func() bool { return g.shipper.linkDown.Load() != nil })
			reason := g.Status().StateReason
			if len(reason) > 4*untrusted.MaxReasonBytes || untrusted.Escape(reason, len(reason)) != reason || reason == "" {
				t.Errorf("the reason has %d bytes: %.200q", len(reason), reason)
			}
			for id, record := range s.groupRecords() {
				if len(record) > 10<<10 || strings.Contains(record, "u001b") {
					t.Errorf("the record of %s has %d bytes", id, len(record))
				}
			}
			g.mu.Lock()
			down := *g.shipper.linkDown.Load()
			g.mu.Unlock()
			if len(down.Error()) > untrusted.MaxReasonBytes {
				t.Errorf("the reason of the link has %d bytes", len(down.Error()))
			}
		})
	}
}
