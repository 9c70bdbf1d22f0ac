// Package advice says what a person does next about a group, from its status: one sentence, the command, and the site
// where the command is given. slipctl and the status page show it. It has no state and calls no process.
package advice

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

// Advice is what to do next.
type Advice struct {
	// Text is a sentence.
	Text string `json:"text"`
	// Command is what to run; empty if there is nothing to do.
	Command string `json:"command"`
	// Site is where; empty if there is no command.
	Site string `json:"site"`
}

// Next returns what to do about a group at the site named here.
func Next(here string, g *sidecarpb.GroupStatus) Advice {
	name, peer := g.GetName(), cmp.Or(g.GetPeer(), "the other site")
	at := func(site, text, command string) Advice { return Advice{Text: text, Command: command, Site: site} }
	primary := g.GetRole() == sidecarpb.Role_ROLE_PRIMARY
	if g.GetApplyError() != "" {
		return at(here, "Writes do not reach the images: "+g.GetApplyError()+". Correct the cause; the group "+
			"continues by itself.", "slipctl group status "+name)
	}
	switch g.GetState() {
	case sidecarpb.GroupState_GROUP_STATE_IDLE:
		return at(here, "The group has no peer, so there is no copy.", "slipctl group set "+name+" --remote SITE")
	case sidecarpb.GroupState_GROUP_STATE_SUSPENDED:
		return at(here, "Replication was suspended here. The copy stays as it is until it is resumed.",
			"slipctl group resume "+name)
	case sidecarpb.GroupState_GROUP_STATE_SYNCING:
		return at(here, "A copy is being made. Wait until it is whole.", "slipctl group wait "+name)
	case sidecarpb.GroupState_GROUP_STATE_DEMOTED:
		return at(peer, fmt.Sprintf("The group was demoted at %s. Promote it at %s to go on there.", here, peer),
			"slipctl group promote "+name)
	case sidecarpb.GroupState_GROUP_STATE_DIVERGED:
		return at(here+" or "+peer, "Both sites took writes. Look at both, and decide which one gives way. Give the "+
			"command there. It keeps that site's writes as snapshots before it undoes them.",
			"slipctl group yield "+name)
	case sidecarpb.GroupState_GROUP_STATE_YIELDING:
		return at(here, "The group gives way. If that was interrupted, repeat the command.", "slipctl group yield "+name)
	case sidecarpb.GroupState_GROUP_STATE_TRIAL:
		return at(here, fmt.Sprintf("The group is open at a point that was chosen, ordinal %d. Look at it. Stay there, or "+
			"go back to all that had arrived (slipctl group rollback %s).", g.GetTrial().GetOrdinal(), name),
			"slipctl group commit "+name)
	case sidecarpb.GroupState_GROUP_STATE_FAILED:
		return at(here, "The group is stopped. Correct the cause that its state names.", "slipctl group status "+name)
	case sidecarpb.GroupState_GROUP_STATE_CONNECTING:
		if primary && strings.HasPrefix(g.GetStateReason(), peer+" refused: ") {
			return at(peer, fmt.Sprintf("%s answers, and does not follow now; the state says why. Applications go on here.",
				peer), "slipctl group status "+name)
		}
		if primary {
			return at(peer, fmt.Sprintf("%s does not answer. Applications go on here. Check that its replicator runs "+
				"and that the network between the sites works.", peer), "slipctl group status "+name)
		}
		if g.GetPromotable() {
			return at(here, fmt.Sprintf("%s does not call. Look whether replication is suspended there. If %[1]s is lost for "+
				"good, take over here with what has arrived. If it still works, do not: both sites would take writes.", peer),
				"slipctl group promote "+name+" --force")
		}
		return at(peer, fmt.Sprintf("%s does not call, and there is no whole copy here. Bring %s back.", peer, peer),
			"slipctl group status "+name)
	}
	if n := g.GetVerify().GetDifferenceCount(); n > 0 {
		return at("the site that is wrong", fmt.Sprintf("The sites differ in %s. Decide which site is right. "+
			"The other one takes its extents.", words.Count(n, "extent")), "slipctl group repair "+name)
	}
	if g.GetLagging() {
		return at(here, "The copy lags beyond the RPO target. Look at the link, the load and the rate limit.",
			"slipctl group status "+name+" --watch")
	}
	if g.GetState() == sidecarpb.GroupState_GROUP_STATE_STREAMING {
		return Advice{Text: "Nothing to do: the copy follows."}
	}
	return at(here, "The state is unknown here: slipctl or the replicator is older than the other.",
		"slipctl group status "+name)
}
