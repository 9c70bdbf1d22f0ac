package replication

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
)

// A group cannot be given a peer that it could never replicate with; one that has such a peer says so.
func TestPeerHasToBeKnown(t *testing.T) {
	net := link.NewNetwork(nil)
	t.Cleanup(net.Close)
	known := []string{"site-b", "calls-only"}
	a := newTestSite(t, net, "site-a", func(c *Config) {
		c.KnownPeer = func(peer string) bool { return slices.Contains(known, peer) }
		c.PeerAddress = func(peer string) string {
			if peer == "site-b" {
				return "memory"
			}
			return ""
		}
	})
	g := a.createGroup("g", "site-b", 0, 0, nil)
	for _, tc := range []struct{ peer, address, want string }{
		{"site-x", "", `"site-x" is not a peer of site site-a`},
		{"site-x", "elsewhere:1", `"site-x" is not a peer of site site-a`},
		{"site-a", "", "cannot replicate to itself"},
		{"calls-only", "", "site-a has no address of its peer calls-only"},
		{"calls-only", "memory", ""},
		{"site-b", "", ""},
	} {
		_, err := a.site.CreateGroup(GroupSpec{
			Name: "new-" + tc.peer + tc.address[:min(6, len(tc.address))], Settings: core.Settings{Peer: tc.peer,
				PeerAddress: tc.address},
		})
		modified := g.Modify(func(s *core.Settings) { s.SetPeer(tc.peer); s.PeerAddress = tc.address })
		for what, err := range map[string]error{"create": err, "modify": modified} {
			if tc.want == "" && err != nil || tc.want != "" && (!errors.Is(err, ErrInvalid) ||
				!strings.Contains(err.Error(), tc.want)) {
				t.Errorf("%s with %q at %q: %v; want %q", what, tc.peer, tc.address, err, tc.want)
			}
		}
	}
	// A peer that is not one any more: the same request is still answered, other settings still change, and the status
	// says why nothing is shipped.
	known = nil
	a.restart()
	g = a.group("g")
	if _, err := a.site.CreateGroup(GroupSpec{
		Name: "g", Settings: core.Settings{Peer: "site-b", JournalSizeBytes: MinJournalBytes},
	}); err != nil {
		t.Error(err)
	}
	mustModify(t, g, func(s *core.Settings) { s.RPOTargetMillis = 1000 })
	net.Cut("site-b")
	if st := g.Status(); !strings.Contains(st.StateReason, "is not a peer of site site-a") {
		t.Errorf("the status is %q: %s", st.State, st.StateReason)
	}
}
