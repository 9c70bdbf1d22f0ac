package epoch

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// ShardID is the number of a shard in its group, the same at both sites and never used again for another shard.
type ShardID uint16

// Life is one run of a process, or of one of its parts: a random number that is never used twice. 0 is none.
type Life uint64

// ID names an epoch. Numbers of the complete epochs of a group are all different and ascend. Two attempts with one
// number, of coordinators that did not know of each other, differ in Run.
type ID struct {
	Number uint64 `json:"number"`
	// Run is the life of the coordinator.
	Run Life `json:"run"`
}

// Compare orders epochs; every journal has its marks in this order.
func (a ID) Compare(b ID) int {
	return cmp.Or(cmp.Compare(a.Number, b.Number), cmp.Compare(a.Run, b.Run))
}

// Before reports whether a is an earlier epoch than b.
func (a ID) Before(b ID) bool { return a.Compare(b) < 0 }

// IsZero reports whether there is no epoch.
func (a ID) IsZero() bool { return a == ID{} }

func (a ID) String() string {
	if a.IsZero() {
		return "none"
	}
	return fmt.Sprintf("%d.%x", a.Number, uint64(a.Run))
}

// ParseID reads what String wrote of an epoch.
func ParseID(text string) (ID, error) {
	number, run, _ := strings.Cut(text, ".")
	n, err := strconv.ParseUint(number, 10, 64)
	if err == nil && (n == 0 || n > maxNumber) {
		err = strconv.ErrRange
	}
	life := uint64(0)
	if err == nil {
		life, err = strconv.ParseUint(run, 16, 64)
	}
	if err != nil || life == 0 {
		return ID{}, fmt.Errorf("epoch %.80q: want its number, a dot and its run", text)
	}
	return ID{Number: n, Run: Life(life)}, nil
}

// maxNumber leaves room for more epochs than a group will ever have, whatever a peer sends.
const maxNumber = 1 << 48

// MaxShards bounds the shards of a group.
const MaxShards = 64

// Version orders configurations. Each is issued by one shard, which has it durable before anything else knows of it.
type Version struct {
	Number uint64  `json:"number"`
	By     ShardID `json:"by"`
}

// Compare orders versions.
func (v Version) Compare(w Version) int {
	return cmp.Or(cmp.Compare(v.Number, w.Number), cmp.Compare(v.By, w.By))
}

func (v Version) String() string { return fmt.Sprintf("%d/%d", v.Number, v.By) }

// Config says which shards a group has. A shard joins and leaves with the first epoch of a new configuration. The zero
// value is that of a shard which is in no group yet.
type Config struct {
	Version Version   `json:"version"`
	Shards  []ShardID `json:"shards"` // ascending
}

// Has reports whether a shard belongs to the group.
func (c Config) Has(s ShardID) bool { _, ok := slices.BinarySearch(c.Shards, s); return ok }

// Coordinator is the shard that cuts epochs and issues the next configuration. ok is false without shards.
func (c Config) Coordinator() (s ShardID, ok bool) {
	if len(c.Shards) == 0 {
		return 0, false
	}
	return c.Shards[0], true
}

func (c Config) String() string { return fmt.Sprintf("%s %v", c.Version, c.Shards) }

// Validate says what is wrong with a configuration of another process or a disk.
func (c Config) Validate() error {
	switch {
	case len(c.Shards) == 0:
		return errors.New("the configuration has no shard")
	case len(c.Shards) > MaxShards:
		return fmt.Errorf("the configuration has %d shards, the limit is %d", len(c.Shards), MaxShards)
	case c.Version.Number == 0:
		return errors.New("the configuration has no version")
	}
	for i, s := range c.Shards {
		if i > 0 && s <= c.Shards[i-1] {
			return fmt.Errorf("the configuration has shard %d behind shard %d", s, c.Shards[i-1])
		}
	}
	return nil
}

// next is the configuration that a shard issues after c.
func (c Config) next(by ShardID, add, remove []ShardID) Config {
	shards := slices.DeleteFunc(slices.Concat(c.Shards, add), func(s ShardID) bool { return slices.Contains(remove, s) })
	slices.Sort(shards)
	return Config{Version: Version{Number: c.Version.Number + 1, By: by}, Shards: slices.Compact(shards)}
}

// Mark is what a shard's journal says about an epoch. It lies behind the boundary: between the two are records whose
// acknowledgements were held.
type Mark struct {
	Epoch ID `json:"epoch"`
	// Shard is the one whose journal this is, Config the shards that all need the mark.
	Shard  ShardID `json:"shard"`
	Config Config  `json:"config"`
	// Boundary is the last ordinal of the shard that belongs to the epoch.
	Boundary uint64 `json:"boundary"`
}

func (m Mark) String() string { return fmt.Sprintf("%s@%d", m.Epoch, m.Boundary) }

// Encode returns the content of the journal's record of the mark: JSON, version by its keys.
func (m Mark) Encode() []byte {
	data, err := json.Marshal(m)
	if err != nil {
		panic(err) // numbers and slices of numbers
	}
	return data
}

// DecodeMark reads the content of a journal's record. The error says what is wrong with it; such a record was damaged,
// or comes from a peer that this site does not understand.
func DecodeMark(data []byte) (Mark, error) {
	var m Mark
	if err := json.Unmarshal(data, &m); err != nil {
		return Mark{}, fmt.Errorf("mark of an epoch: %w", err)
	}
	if err := m.Validate(); err != nil {
		return Mark{}, err
	}
	return m, nil
}

// Validate says what is wrong with a mark of another process or a disk.
func (m Mark) Validate() error {
	if m.Epoch.Number == 0 || m.Epoch.Number > maxNumber || m.Epoch.Run == 0 {
		return fmt.Errorf("mark of epoch %s: want a number from 1 to %d, and a run", m.Epoch, uint64(maxNumber))
	}
	if err := m.Config.Validate(); err != nil {
		return fmt.Errorf("mark of epoch %s: %w", m.Epoch, err)
	}
	if !m.Config.Has(m.Shard) {
		return fmt.Errorf("mark of epoch %s: shard %d is not among its shards", m.Epoch, m.Shard)
	}
	return nil
}
