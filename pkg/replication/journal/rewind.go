package journal

// NextBegin is the place where the next segment's first record will be. It stays so while nothing is appended.
func (j *Journal) NextBegin() Position {
	j.mu.Lock()
	defer j.mu.Unlock()
	return Position{j.nextSequence, segmentHeaderBytes}
}

// Rewind empties the journal and makes head its last ordinal, also where that is a lower one than before: the site
// gives up the records past it, and will be sent others with their ordinals. Places do not go back: the next record is
// at NextBegin.
//
// The caller has made durable before, in its checkpoint, that OldestSegment is that of NextBegin and that head is the
// ordinal there. It needs none of the records any more, and appends nothing meanwhile.
func (j *Journal) Rewind(head uint64) error {
	j.appendMu.Lock()
	defer j.appendMu.Unlock()
	j.mu.Lock()
	for j.syncing {
		j.cond.Wait()
	}
	if err := j.usableLocked(); err != nil {
		j.mu.Unlock()
		return err
	}
	var drop []*segment
	for _, s := range j.live {
		s.sealed, s.released = true, true
		if s.pins > 0 {
			j.retired += s.size
		} else if !j.recycleLocked(s) {
			drop = append(drop, s)
		}
	}
	j.live = nil
	begin := Position{j.nextSequence, segmentHeaderBytes}
	j.head, j.durable, j.durableAppended = head, head, j.appended
	j.end, j.durableEnd, j.prev, j.prevFile = begin, begin, Position{}, 0
	j.chain, j.durableMark, j.mustRoll = 0, Mark{}, false
	j.tellRoomLocked()
	j.mu.Unlock()
	for _, s := range drop {
		j.remove(s)
	}
	return nil
}
