package epoch

import (
	"errors"
	"fmt"
	"slices"
)

// ErrNotYet marks errors of requests that time resolves; nothing changed. Repeat the call.
var ErrNotYet = errors.New("not yet")

// ErrRefused marks errors of requests that a person or another call has to resolve first; nothing changed.
var ErrRefused = errors.New("refused")

// Propose returns the next configuration, which the caller gives to its shard ([Adopt]) and, when it is durable, to
// this coordinator ([Configured]). Only the coordinator's own shard issues configurations, so there is one chain of
// them.
//
// A shard that leaves has no members any more. The last epochs with it have to be at the peer before, so that every
// copy of an old configuration names the copies that know of the next one. Without a peer (alone) nothing is waited
// for.
//
// Errors: ErrRefused if this is not the coordinator, or no shard would remain; ErrNotYet while the peer lags behind.
func (c *Coordinator) Propose(add, remove []ShardID, alone bool) (Config, error) {
	first, ok := c.config.Coordinator()
	if !ok || first != c.self || c.state == CoordinatorOff {
		return Config{}, fmt.Errorf("%w: shard %d does not coordinate its group", ErrRefused, c.self)
	}
	add = slices.DeleteFunc(slices.Clone(add), c.config.Has)
	remove = slices.DeleteFunc(slices.Clone(remove), func(s ShardID) bool { return !c.config.Has(s) })
	if len(add) == 0 && len(remove) == 0 {
		return c.config, nil
	}
	next := c.config.next(c.self, add, remove)
	switch {
	case !slices.ContainsFunc(c.config.Shards, next.Has):
		return Config{}, fmt.Errorf("%w: none of the group's shards would remain", ErrRefused)
	case len(next.Shards) > MaxShards:
		return Config{}, fmt.Errorf("%w: the group would have %d shards, the limit is %d", ErrRefused, len(next.Shards),
			MaxShards)
	}
	if slowest, acked, known := c.Acked(); len(remove) > 0 && !alone &&
		(!known || c.firstCut.IsZero() || acked.Before(c.firstCut)) {
		return Config{}, fmt.Errorf("%w: the peer does not have an epoch of the present shards yet, shard %d is behind",
			ErrNotYet, slowest)
	}
	return next, nil
}

// Found returns the first configuration of a group: its founder alone.
func Found(founder ShardID) Config { return Config{}.next(founder, []ShardID{founder}, nil) }

// promotedVersions is the distance between versions that promotions issue: far more than a primary issues in its life.
const promotedVersions = 1 << 20

// Promoted returns the configuration with which the shards of a promoted group go on. The first of them issues it;
// every call gives the same. Its version is above all that the old primary has issued behind the epoch, which copies
// may know from marks of later epochs, or may issue yet: the shards at both sites have the same numbers.
func (d Decision) Promoted() Config {
	c := d.Config.next(0, nil, d.Without)
	if len(c.Shards) > 0 {
		c.Version.By = c.Shards[0]
	}
	c.Version.Number = (d.Config.Version.Number/promotedVersions + 1) * promotedVersions
	return c
}
