package link

import (
	"fmt"

	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
)

// maxEchoedBytes bounds what an answer repeats of a caller's text.
const maxEchoedBytes = 128

// RefuseForeign is the one answer to a site that calls for a group that is not its own at this site. It repeats what
// the caller said and tells nothing else: not whether the id or the name is taken, by whom, or in which role and state.
// Gateways and replicators give the same.
func RefuseForeign(site, peer string, hello *linkpb.Hello) *linkpb.Refusal {
	return &linkpb.Refusal{
		Reason: linkpb.Refusal_REASON_FOREIGN_GROUP,
		Message: fmt.Sprintf(
			"site %s takes no group %.*q (%.*s) from site %s: the name or the id is not %[6]s's there; the log of site %[1]s "+
				"says why, and the group can be made again at %[6]s under another name", site,
			maxEchoedBytes, hello.GetGroupName(), maxEchoedBytes, hello.GetGroupId(), peer),
	}
}
