package advice

import (
	"strings"
	"testing"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

const (
	primary   = sidecarpb.Role_ROLE_PRIMARY
	secondary = sidecarpb.Role_ROLE_SECONDARY
)

// Each state names the site that has to act and the command that does it.
func TestNext(t *testing.T) {
	for what, tc := range map[string]struct {
		status        *sidecarpb.GroupStatus
		site, command string
	}{
		"follows": {&sidecarpb.GroupStatus{Role: primary, State: sidecarpb.GroupState_GROUP_STATE_STREAMING},
			"", ""},
		"lags": {&sidecarpb.GroupStatus{Role: primary, State: 3, Lagging: true},
			"site-a", "slipctl group status shop --watch"},
		"no peer": {&sidecarpb.GroupStatus{Role: primary, State: 1},
			"site-a", "slipctl group set shop --remote SITE"},
		"peer away": {&sidecarpb.GroupStatus{Role: primary, State: 2, Promotable: true},
			"site-b", "slipctl group status shop"},
		"peer refuses": {&sidecarpb.GroupStatus{Role: primary, State: 2, StateReason: "site-b refused: it is on trial"},
			"site-b", "slipctl group status shop"},
		"primary away": {&sidecarpb.GroupStatus{Role: secondary, State: 2, Promotable: true},
			"site-a", "slipctl group promote shop --force"},
		"nothing to open": {&sidecarpb.GroupStatus{Role: secondary, State: 2},
			"site-b", "slipctl group status shop"},
		"sync": {&sidecarpb.GroupStatus{Role: primary, State: 4},
			"site-a", "slipctl group wait shop"},
		"demoted": {&sidecarpb.GroupStatus{Role: secondary, State: 5},
			"site-b", "slipctl group promote shop"},
		"fork": {&sidecarpb.GroupStatus{Role: primary, State: 6},
			"site-a or site-b", "slipctl group yield shop"},
		"suspended": {&sidecarpb.GroupStatus{Role: primary, State: 8},
			"site-a", "slipctl group resume shop"},
		"yields": {&sidecarpb.GroupStatus{Role: primary, State: 9},
			"site-a", "slipctl group yield shop"},
		"failed": {&sidecarpb.GroupStatus{State: 7}, "site-a", "slipctl group status shop"},
		"disk": {&sidecarpb.GroupStatus{Role: primary, State: 3, ApplyError: "no space"},
			"site-a", "slipctl group status shop"},
		"newer": {&sidecarpb.GroupStatus{Role: primary, State: 99},
			"site-a", "slipctl group status shop"},
	} {
		tc.status.Name, tc.status.Peer = "shop", "site-b"
		if what == "no peer" {
			tc.status.Peer = ""
		}
		got := Next("site-a", tc.status)
		if got.Site != tc.site || got.Command != tc.command || !strings.HasSuffix(got.Text, ".") {
			t.Errorf("%s: %+v, want %s at %q", what, got, tc.command, tc.site)
		}
	}
}
