package groups

import (
	"fmt"
	"strings"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

// shardRows prints what a group is in a group over several nodes.
func shardRows(s *sidecarpb.ShardStatus, row func(name, format string, args ...any)) {
	if s == nil {
		return
	}
	row("shard", "%d of %s", s.GetId(), s.GetGroup())
	for i, p := range s.GetShards() {
		name := ""
		if i == 0 {
			name = "shards"
		}
		row(name, "%s", shardText(p, s))
	}
	if silent := s.GetSilentNodes(); len(silent) > 0 {
		row("silent nodes", "%s", strings.Join(silent, ", "))
	}
}

// shardText is one shard of a group at this site.
func shardText(p *sidecarpb.ShardPlace, s *sidecarpb.ShardStatus) string {
	text := fmt.Sprintf("%d: group %s on node %s, %s", p.GetId(), p.GetGroupName(), p.GetNode(), p.GetRole().Word())
	switch {
	case p.GetRole() == sidecarpb.Role_ROLE_PRIMARY && !p.GetJoined():
		return text + ", has not joined yet"
	case p.GetRole() == sidecarpb.Role_ROLE_PRIMARY:
		return text + primaryText(p)
	case p.ShownEpoch == nil:
		return text + ", has no complete epoch"
	}
	text += fmt.Sprintf(", shows epoch %d", p.GetShownEpoch())
	if slowest(s) == p.GetId() && p.GetNewestEpoch() == p.GetShownEpoch() {
		text += ", the others wait for it"
	}
	return text
}

// primaryText is what holds a primary shard back.
func primaryText(p *sidecarpb.ShardPlace) (text string) {
	switch {
	case p.GetDemoted():
		text = ", demoted"
	case p.GetClosed():
		text = ", takes no writes until the demotion of the group ends or is taken back"
	}
	if p.GetSuspended() {
		text += ", suspended"
	}
	return text
}

// slowest is the copy whose newest epoch is the oldest, if not all have the same.
func slowest(s *sidecarpb.ShardStatus) (id uint32) {
	id = ^uint32(0)
	var least, most uint64
	for _, p := range s.GetShards() {
		if n := p.GetNewestEpoch(); id == ^uint32(0) || n < least {
			id, least = p.GetId(), n
		}
		most = max(most, p.GetNewestEpoch())
	}
	if least == most {
		return ^uint32(0)
	}
	return id
}
