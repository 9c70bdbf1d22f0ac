package epoch

// Effect is something for the engine to do. Effects of one Step are carried out in order, each before the next one is
// begun, and before the next Step of the same type.
type Effect interface{ effect() }

// Send hands a message to a shard or copy of the group, or answers the one whose message led to it.
type Send struct {
	To      ShardID
	Message Message
}

// Reply answers the sender of the message that the Step was for.
type Reply struct{ Message Message }

// PersistConfig has to be durable before the next effect.
type PersistConfig struct{ Config Config }

// Hold: from the boundary on, which the event named, no write and no flush that covers one is acknowledged.
type Hold struct {
	Epoch    ID
	Boundary uint64
}

// Release ends the hold of an epoch. Everything that was held is acknowledged.
type Release struct{ Epoch ID }

// AppendMark puts a mark at the end of the shard's journal.
type AppendMark struct{ Mark Mark }

// Completed: every shard has put the mark of an epoch.
type Completed struct {
	Epoch      ID
	Config     Config
	Boundaries []uint64 // beside Config.Shards
}

// Failed: an epoch was given up. Shard is one that did not do its part.
type Failed struct {
	Epoch ID
	Shard ShardID
}

// Superseded: a shard has a newer configuration than the coordinator, which stops until it is given that one.
type Superseded struct{ Config Config }

func (Send) effect()          {}
func (Reply) effect()         {}
func (PersistConfig) effect() {}
func (Hold) effect()          {}
func (Release) effect()       {}
func (AppendMark) effect()    {}
func (Completed) effect()     {}
func (Failed) effect()        {}
func (Superseded) effect()    {}
