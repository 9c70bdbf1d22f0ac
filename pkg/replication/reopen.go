package replication

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// reopener opens groups that could not be opened for lack of space, descriptors or memory, when there is some, and
// those that are being promoted in the middle of a sync, when their images are restored.
type reopener struct {
	cancel context.CancelFunc
	done   chan struct{}
	// work makes it look at once; settled is sent when it has looked, and when it has ended.
	work    signal
	settled broadcast
}

// start begins to look after such groups of a site, every interval.
func (r *reopener) start(s *Site, interval time.Duration) {
	var ctx context.Context
	ctx, r.cancel = context.WithCancel(context.Background())
	r.done, r.work = make(chan struct{}), newSignal()
	r.work.send() // a crash may have come while images were restored
	go func() {
		defer close(r.done)
		defer r.settled.send()
		ticker := time.NewTicker(interval)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			case <-r.work:
			}
			s.restore(ctx)
			s.reopen()
			r.settled.send()
		}
	}()
}

// stop ends that and waits for it.
func (r *reopener) stop() {
	if r.cancel != nil {
		r.cancel()
		<-r.done
	}
}

// passes reports whether what an error of opening says can pass without a restart: a lack, or images that are to be
// restored. A disk that cannot be read is not among them: each try reads the whole journal.
func passes(err error) bool {
	return errors.Is(err, errRollingBack) || vfs.NoSpace(err) || errors.Is(err, unix.EMFILE) ||
		errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOMEM)
}

// restore restores the images of groups that are being promoted in the middle of a sync. Other groups are not kept
// waiting for it.
func (s *Site) restore(ctx context.Context) {
	s.mu.Lock()
	var dirs []string
	for dir, why := range s.broken {
		if passes(why) {
			dirs = append(dirs, dir)
		}
	}
	s.mu.Unlock()
	for _, dir := range dirs {
		err := s.restoreImages(ctx, dir)
		if err == nil || ctx.Err() != nil {
			continue
		}
		s.mu.Lock()
		if s.broken[dir] != nil { // else it was deleted meanwhile
			s.breakLocked(dir, s.brokenNames[dir], err)
		}
		s.mu.Unlock()
	}
}

// reopen tries the groups once whose obstacle may have passed, or whose images were to be restored.
func (s *Site) reopen() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	opened := false
	for dir, why := range s.broken {
		if !passes(why) {
			continue
		}
		g, err := openGroup(s, dir)
		if errors.Is(err, errRollingBack) {
			continue // what kept the images from being restored stays the reason
		}
		if err != nil {
			s.broken[dir] = err
			continue
		}
		klog.InfoS("Group opened after its obstacle has gone", "group", g.Name())
		delete(s.broken, dir)
		delete(s.brokenNames, dir)
		s.groups[g.Name()] = g
		g.start()
		opened = true
	}
	if opened {
		if err := s.freeStrays(); err != nil {
			klog.ErrorS(err, "Volumes that are in no group any more are not released in their records; the next start does it")
		}
	}
}
