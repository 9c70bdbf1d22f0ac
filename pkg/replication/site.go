package replication

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/internal/lograte"
	"github.com/slipstream-storage/slipstream/internal/pause"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/clocks"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// Config is what a site's groups stand on. Zero intervals mean the defaults.
type Config struct {
	FS   vfs.FS
	Pool *blockdev.Pool
	Site string
	// Dialer opens streams to peers; nil for a site that calls no peer.
	Dialer link.Dialer
	// KnownPeer tells which sites groups may replicate with; nil: any.
	KnownPeer func(peer string) bool
	// PeerAddress tells where a peer listens; empty if it is not known.
	PeerAddress func(peer string) string
	// LinkClosed says why this site neither calls peers nor lets them in now, as for lack of a certificate; nil: it never
	// is.
	LinkClosed func() error
	// Codec compresses batches where that makes them smaller.
	Codec link.Codec
	Now   func() time.Time
	// Clock tells the same moment on all of the machine's clocks; default those of the system, with Now as wall clock.
	Clock func() clocks.Instant

	// Limits bound what each peer's groups take here.
	Limits Limits

	// MemoryBytes is how much of the newest records is kept in memory, for all groups together; default
	// journal.DefaultMemoryBytes.
	MemoryBytes int64

	// CommitInterval is how long a record that is not flushed may stay volatile; default 50 ms.
	CommitInterval time.Duration
	// ShipInterval is the time between two small batches to the peer; default 20 ms. It is part of the RPO.
	ShipInterval time.Duration
	// ApplyInterval is how long a durable record stays unapplied at most while there is room; default 2 s.
	ApplyInterval time.Duration
	// HeartbeatInterval is how often a primary says where it is; default 100 ms.
	HeartbeatInterval time.Duration
	// RedialInterval is how long a primary waits first before it calls its peer again; each failure doubles it, up to a
	// hundred times as long; default 100 ms.
	RedialInterval time.Duration
}

func (c *Config) setDefaults() {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Clock == nil {
		c.Clock = func() clocks.Instant { return clocks.Read(c.Now) }
	}
	c.Limits.setDefaults()
	if c.MemoryBytes <= 0 {
		c.MemoryBytes = journal.DefaultMemoryBytes
	}
	if c.PeerAddress == nil {
		c.PeerAddress = func(string) string { return "" }
	}
	for _, d := range []struct {
		value *time.Duration
		def   time.Duration
	}{
		{&c.CommitInterval, 50 * time.Millisecond}, {&c.ShipInterval, 20 * time.Millisecond},
		{&c.ApplyInterval, 2 * time.Second}, {&c.HeartbeatInterval, 100 * time.Millisecond},
		{&c.RedialInterval, 100 * time.Millisecond},
	} {
		if *d.value <= 0 {
			*d.value = d.def
		}
	}
}

// Site holds the groups of one pool.
type Site struct {
	cfg Config
	// memory has the newest records of all groups.
	memory *journal.Memory

	// takesOver is what TakesOver was given.
	takesOver atomic.Pointer[func(ctx context.Context, group string) error]

	mu     sync.Mutex
	groups map[string]*Group // by name
	// broken are directories of groups that could not be opened, with the reason. They are left as they are.
	broken map[string]error
	// brokenNames are their names, where they are known.
	brokenNames map[string]string
	// doomed are directories of groups whose deletion is not complete, with the groups' names.
	doomed   map[string]string
	register register
	closed   bool

	reopener reopener
	// refusals is the log of calls that were turned away.
	refusals lograte.Log
	// quotaMu keeps changes apart that take from a peer's quota, from looking to doing. It is taken before a group's
	// members.mu.
	quotaMu sync.Mutex

	stop context.CancelFunc
	wg   sync.WaitGroup
}

// Open opens every group of the pool and starts their work. A group that cannot be opened does not keep the others
// from it: see [Site.Broken].
func Open(cfg Config) (*Site, error) {
	cfg.setDefaults()
	s := &Site{cfg: cfg, memory: journal.NewMemory(cfg.MemoryBytes), groups: map[string]*Group{},
		broken: map[string]error{}, brokenNames: map[string]string{}, doomed: map[string]string{}}
	s.loadRegister()
	parent := cfg.Pool.GroupsDir()
	if err := cfg.FS.MkdirAll(parent); err != nil {
		return nil, err
	}
	ids, err := cfg.FS.ReadDir(parent)
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		if id == "lost+found" { // of the file system that is mounted there
			continue
		}
		dir := filepath.Join(parent, id)
		swept, err := s.sweepGroupDir(dir)
		if swept && err == nil {
			continue
		}
		var g *Group
		if err == nil {
			g, err = openGroup(s, dir)
		}
		if err != nil {
			s.breakLocked(dir, s.nameIn(dir), err)
			continue
		}
		s.groups[g.Name()] = g
	}
	s.missLocked()
	s.failOrphans() // before groups begin to forget their snapshots
	if err := s.finishDeletionsLocked(); err != nil {
		klog.ErrorS(err, "The next start, or a deletion that is repeated, goes on with it")
	}
	s.noteGroupsLocked()
	for _, g := range s.groups {
		g.start()
	}
	s.startRegister()
	if err := s.freeStrays(); err != nil {
		klog.ErrorS(err, "Volumes that are in no group any more are not released in their records; the next start does it")
	}
	s.reopener.start(s, cfg.ApplyInterval)
	return s, nil
}

// Close closes every group.
func (s *Site) Close() error {
	var errs []error
	list := s.shut()
	for _, g := range list {
		errs = append(errs, g.Close())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.notePositionsLocked(list)
	s.noteGroupsLocked()
	return errors.Join(errs...)
}

// Kill ends every group as a kill of the process would. Tests only.
func (s *Site) Kill() {
	for _, g := range s.shut() {
		g.Kill()
	}
}

func (s *Site) shut() []*Group {
	s.reopener.stop()
	s.stop()
	s.wg.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	var list []*Group
	for name, g := range s.groups {
		list = append(list, g)
		delete(s.groups, name)
	}
	return list
}

// Broken returns the directories of groups that could not be opened, with the reasons and what can be done.
func (s *Site) Broken() map[string]error {
	s.mu.Lock()
	defer s.mu.Unlock()
	broken := map[string]error{}
	for dir, err := range s.broken {
		broken[dir] = withRemedy(s.brokenNames[dir], err)
	}
	return broken
}

// BrokenName returns the name of a group in a directory that Broken returned; empty where it is not known.
func (s *Site) BrokenName(dir string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.brokenNames[dir]
}

// Group returns the group with a name. Errors are ErrNotFound, ErrNotOpen, and ErrClosed for a site that is closed.
func (s *Site) Group(name string) (*Group, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if g := s.groups[name]; g != nil {
		return g, nil
	}
	if s.closed { // what it had is not known any more
		return nil, ErrClosed
	}
	if _, err := s.brokenGroupLocked(name); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("%w: group %q does not exist at %s", ErrNotFound, name, s.cfg.Site)
}

// Memory returns what the site's memory of the newest records has and has done.
func (s *Site) Memory() journal.MemoryStats { return s.memory.Stats() }

// Groups returns all groups, by name.
func (s *Site) Groups() []*Group {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []*Group
	for _, g := range s.groups {
		list = append(list, g)
	}
	slices.SortFunc(list, func(a, b *Group) int { return strings.Compare(a.Name(), b.Name()) })
	return list
}

// GroupOf returns the group that has a volume as a member. ErrNotFound: no group has it. ErrNotOpen: the volume's
// record names a group that is not open, and whose journal may have writes that the image lacks. ErrClosed as Group.
func (s *Site) GroupOf(volumeID string) (*Group, error) {
	for _, g := range s.Groups() {
		if _, err := g.Volume(volumeID); err == nil {
			return g, nil
		}
	}
	none := fmt.Errorf("%w: volume %s is in no group", ErrNotFound, volumeID)
	rec, err := s.cfg.Pool.Get(volumeID)
	switch {
	case errors.Is(err, blockdev.ErrNoVolume):
		return nil, none
	case err != nil:
		return nil, err
	case rec.Group == "":
		return nil, none
	}
	g, err := s.Group(rec.Group)
	switch {
	case errors.Is(err, ErrNotFound): // its deletion is decided, and goes on
		return nil, none
	case err != nil:
		return nil, fmt.Errorf("volume %s: %w", volumeID, err)
	}
	// Either it has been opened since the first look, or the volume did not get as far as being a member of it.
	if _, err := g.Volume(volumeID); err != nil {
		return nil, none
	}
	return g, nil
}

// GroupSpec is what a group is made from.
type GroupSpec struct {
	Name string
	// Settings: no journal size is the default one, no policy is PolicyTrack.
	core.Settings
}

var namePattern = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,126}[a-z0-9])?$`)

func (spec *GroupSpec) check() error {
	if spec.JournalSizeBytes == 0 {
		spec.JournalSizeBytes = core.DefaultJournalBytes
	}
	if spec.JournalFull == "" {
		spec.JournalFull = core.PolicyTrack
	}
	if !namePattern.MatchString(spec.Name) {
		return fmt.Errorf("%w: group name %q: lower-case letters, digits, '-' and '.', at most 128", ErrInvalid, spec.Name)
	}
	if spec.Peer == "" && spec.JournalFull == core.PolicyStall {
		return fmt.Errorf("%w: group %s: journal-full stall needs a remote site", ErrInvalid, spec.Name)
	}
	return checkSettings(spec.Name, spec.Settings)
}

// CreateGroup makes a primary group. Repeating it with the same properties returns the group that is there.
func (s *Site) CreateGroup(spec GroupSpec) (*Group, error) {
	if err := spec.check(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if g := s.groups[spec.Name]; g != nil {
		if have := g.Settings(); have != spec.Settings {
			return nil, fmt.Errorf("%w: group %s at %s has other settings: %s; change them there (slipctl group set %s), or "+
				"choose another name", ErrExists, spec.Name, s.cfg.Site, have.Unlike(spec.Settings), spec.Name)
		}
		return g, nil
	}
	if err := s.cfg.checkPeer(spec.Name, spec.Settings); err != nil {
		return nil, err
	}
	if err := s.checkShardLocked(spec); err != nil {
		return nil, err
	}
	if err := s.checkJournalFits(spec.Name, spec.Settings, 0); err != nil {
		return nil, err
	}
	return s.addLocked(core.Meta{
		Version: core.MetaVersion, GroupID: uuid.NewString(), Name: spec.Name, Site: s.cfg.Site, Settings: spec.Settings,
		Role: core.RolePrimary, Timelines: []core.Timeline{{ID: uuid.NewString(), ForkedUnixNanos: s.cfg.Now().UnixNano()}},
		Sync: core.SyncNever, Instance: uuid.NewString(), Copy: core.CopyWhole,
	})
}

// checkShardLocked refuses a second group that is the same shard: only one of the two would ever join.
func (s *Site) checkShardLocked(spec GroupSpec) error {
	shard := spec.Settings.Shard
	for name, g := range s.groups {
		if have := g.Settings().Shard; shard.Group != "" && have.Group == shard.Group && have.ID == shard.ID {
			return fmt.Errorf("%w: group %s: shard %d of %s is group %s on this node already; another shard has another "+
				"number (--shard)", ErrExists, spec.Name, shard.ID, shard.Group, name)
		}
	}
	return nil
}

func (s *Site) addLocked(meta core.Meta) (*Group, error) {
	if s.closed {
		return nil, ErrClosed
	}
	dir, err := s.cfg.Pool.GroupDir(meta.GroupID)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if err := s.broken[dir]; err != nil {
		return nil, s.notOpen(meta.Name, err)
	}
	if _, err := s.brokenGroupLocked(meta.Name); err != nil {
		return nil, err
	}
	if err := s.makeWayLocked(dir, meta.Name); err != nil {
		return nil, err
	}
	if err := createGroup(s, dir, meta); err != nil {
		return nil, err
	}
	g, err := openGroup(s, dir)
	if err != nil {
		return nil, err
	}
	s.groups[meta.Name] = g
	s.noteGroupsLocked()
	g.start()
	return g, nil
}

// WaitFor polls a condition of a group until it holds or the context ends. Tests and commands that wait for a state use
// it; nothing in the engine does.
func (g *Group) WaitFor(ctx context.Context, condition func() bool) error {
	const interval = 5 * time.Millisecond
	for !condition() {
		if !pause.For(ctx, interval) {
			return ctx.Err()
		}
	}
	return nil
}
