package replication

import (
	"context"
	"time"

	"k8s.io/klog/v2"

	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// reopener opens groups that could not be opened because there was no space, when there is some.
type reopener struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// start begins to look after the groups of a site that could not be opened because there was no space, every interval.
func (r *reopener) start(s *Site, interval time.Duration) {
	var ctx context.Context
	ctx, r.cancel = context.WithCancel(context.Background())
	r.done = make(chan struct{})
	go func() {
		defer close(r.done)
		for sleep(ctx, interval) {
			s.reopen()
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

// reopen tries the groups once that could not be opened because there was no space.
func (s *Site) reopen() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	opened := false
	for dir, why := range s.broken {
		if !vfs.NoSpace(why) {
			continue
		}
		g, err := openGroup(s, dir)
		if err != nil {
			s.broken[dir] = err
			continue
		}
		klog.InfoS("Group opened, now that there is space", "group", g.Name())
		delete(s.broken, dir)
		delete(s.brokenNames, dir)
		s.groups[g.Name()] = g
		g.start()
		opened = true
	}
	if opened {
		if err := s.releaseStrays(); err != nil {
			klog.ErrorS(err, "Volumes that are in no group any more are not released in their records; the next start does it")
		}
	}
}
