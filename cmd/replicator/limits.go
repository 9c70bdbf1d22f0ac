package main

import (
	"flag"
	"fmt"

	"github.com/slipstream-storage/slipstream/pkg/replication"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
)

// limits are what one peer may take of this node.
type limits struct {
	replication.Limits
	streams int
}

func (l *limits) add(flags *flag.FlagSet) {
	l.Limits = replication.DefaultLimits
	flags.IntVar(&l.Groups, "peer-max-groups", l.Groups, "limit of groups of one peer on this node")
	flags.IntVar(&l.Members, "peer-max-volumes", l.Members, "limit of volume copies of one peer on this node")
	flags.IntVar(&l.PoolPercent, "peer-max-percent", l.PoolPercent,
		"`percent` of the pool's file system that the copies of one peer and their journals may come to; above 100 to "+
			"overcommit")
	flags.IntVar(&l.ReservePercent, "copies-reserve-percent", l.ReservePercent,
		"`percent` of the pool's file system that copies leave free for this site's own volumes")
	flags.Int64Var(&l.JournalBytes, "peer-max-journal", l.JournalBytes,
		"`bytes` of the largest journal of a copy, whatever the primary has; never above a sixteenth of the journals' "+
			"file system")
	flags.IntVar(&l.Timelines, "peer-max-timelines", l.Timelines,
		"limit of timelines of a peer's group; each promotion adds one")
	flags.IntVar(&l.streams, "peer-max-streams", link.DefaultMaxStreams, "limit of open streams of one peer")
}

func (l *limits) check() error {
	for name, n := range map[string]int64{
		"peer-max-groups": int64(l.Groups), "peer-max-volumes": int64(l.Members), "peer-max-percent": int64(l.PoolPercent),
		"peer-max-journal": l.JournalBytes, "peer-max-timelines": int64(l.Timelines), "peer-max-streams": int64(l.streams),
		"copies-reserve-percent": int64(l.ReservePercent),
	} {
		if n < 0 {
			return fmt.Errorf("--%s %d: want at least 1, or 0 for the default", name, n)
		}
	}
	return l.Check()
}
