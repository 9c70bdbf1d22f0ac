package replication

// Limits are what the groups of one peer may take of this site, with defaults for what is 0.
type Limits struct {
	// Timelines is how many timelines a group may have; each promotion adds one. Default 1024, at most core.MaxTimelines.
	Timelines int
}

func (l *Limits) setDefaults() {
	if l.Timelines == 0 {
		l.Timelines = 1024
	}
}
