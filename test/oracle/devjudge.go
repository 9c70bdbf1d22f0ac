package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/slipstream-storage/slipstream/internal/testsite"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

// read returns what the devices of a site show.
func (c *deviceCircle) read(s *deviceSite) (content, error) {
	return c.readAll(s.Config.Name, s.numbers(), func(number int) (readerAt, error) { return s.devices[number], nil })
}

// readAll reads some volumes of a copy.
func (c *deviceCircle) readAll(who string, numbers []int, open func(number int) (readerAt, error)) (content, error) {
	shown := make(content, len(c.volumes))
	for i := range shown {
		shown[i] = shownVolume{absent: true, perBlock: 1}
	}
	for _, number := range numbers {
		from, err := open(number)
		if err == nil {
			shown[number], err = c.h.read(c.seed, number, from, true)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", who, err)
		}
	}
	return shown, nil
}

// settle waits until the images of both sites hold everything, and demands that they are identical and what was
// written.
func (c *deviceCircle) settle() error {
	p, s := c.primary, c.secondary
	same := func(what string, ordinals func(*sidecarpb.GroupStatus) uint64) error {
		return c.eventually("the copy of everything in "+what, func() (bool, string) {
			a, errA := p.Group(c.ctx, c.group)
			b, errB := s.Group(c.ctx, c.group)
			return testsite.Streaming(a) && a.GetChangeMapBytes() == 0 && ordinals(a) == a.GetHeadOrdinal() &&
				a.GetAcknowledgedOrdinal() == a.GetHeadOrdinal() && b.GetRole() == sidecarpb.Role_ROLE_SECONDARY &&
				b.GetPromotable() && b.GetBeforeSync() == nil &&
				ordinals(b) == a.GetHeadOrdinal(), fmt.Sprintf("%v %v; %v %v", a, errA, b, errB)
		})
	}
	if err := same("both journals", (*sidecarpb.GroupStatus).GetDurableOrdinal); err != nil {
		return err
	}
	// A sync's extents take no ordinal: they are in the images for certain when a write behind them is.
	if err := c.write(p, 1); err != nil {
		return err
	}
	if err := same("both images", (*sidecarpb.GroupStatus).GetAppliedOrdinal); err != nil {
		return err
	}
	c.floor = uint64(len(p.line))
	s.line = slices.Clone(p.line)
	shown, err := c.read(p)
	if err != nil {
		return err
	}
	if err := c.h.checkImage(p.Config.Name, shown, c.h.lineContent(p.line, c.floor)); err != nil {
		return err
	}
	for _, number := range p.numbers() {
		if err := c.sameImages(number); err != nil {
			return err
		}
	}
	return nil
}

// sameImages demands that the images of a volume are identical, by their hash, and that the copy shows what was
// written.
func (c *deviceCircle) sameImages(number int) error {
	p, s := c.primary, c.secondary
	a, errA := hashFile(p.Image(c.volumes[number]))
	b, errB := hashFile(s.Image(c.volumes[number]))
	if err := errors.Join(errA, errB); err != nil || a == b {
		return err
	}
	want := make(content, len(c.volumes))
	for i := range want {
		want[i] = shownVolume{absent: true, perBlock: 1}
	}
	want[number] = c.h.lineContent(p.line, c.floor)[number]
	for _, at := range []*deviceSite{p, s} {
		who := fmt.Sprintf("the image at %s (primary: %v)", at.Config.Name, at == p)
		shown, err := c.readFiles(who, map[int]string{number: at.Image(c.volumes[number])})
		if err == nil {
			err = c.h.checkImage(who, shown, want)
		}
		if err != nil {
			return err
		}
	}
	return c.h.violation("the images of volume %d are %x at %s and %x at %s", number, a, p.Config.Name, b, s.Config.Name)
}

// hashFile is the hash of a file's content.
func hashFile(path string) (sum [sha256.Size]byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err = io.Copy(h, f); err != nil {
		return sum, err
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}

// prefix demands that content is what a line was after some of its entries, at least so many, and returns how many: up
// to the last one that is seen.
func (c *deviceCircle) prefix(who string, shown content, line []entry, least uint64) (uint64, error) {
	seen := map[*op]bool{}
	for _, v := range shown {
		for _, o := range v.units {
			seen[o] = true
		}
	}
	n := uint64(len(line))
	for n > least && (line[n-1].op == nil || !seen[line[n-1].op]) {
		n--
	}
	want := c.h.lineContent(line, n)
	for _, number := range leaving(line, n) {
		want[number].absent = want[number].absent || shown[number].absent
	}
	return n, c.h.checkImage(who, shown, want)
}

// lossIsExact waits until the promoted site knows what the old primary had written past the fork, and judges that.
func (c *deviceCircle) lossIsExact(old, now *deviceSite, fork int) error {
	writes := uint64(0)
	for _, e := range old.line[min(fork, len(old.line)):] {
		if e.op != nil {
			writes++
		}
	}
	var loss *sidecarpb.LossReport
	err := c.eventually("the exact loss", func() (bool, string) {
		a, errA := old.Group(c.ctx, c.group)
		b, errB := now.Group(c.ctx, c.group)
		loss = b.GetLoss()
		// Where the link was up it may be what the old primary had written at the contact before.
		return loss.GetExact() && a.GetState() == sidecarpb.GroupState_GROUP_STATE_DIVERGED &&
			(loss.GetPartial() || loss.GetLostWrites() >= writes), fmt.Sprintf("%v %v; %v %v", a, errA, b, errB)
	})
	if err != nil {
		return err
	}
	if n := loss.GetLostWrites(); !loss.GetPartial() && n > writes && !c.killed {
		return c.h.violation("the loss report says that %d writes were lost, it was %d", n, writes)
	}
	return nil
}

// judgeTails demands that every tail is there, and holds exactly what its site had.
func (c *deviceCircle) judgeTails() error {
	for _, s := range []*deviceSite{c.primary, c.secondary} {
		list, err := s.Sidecar.ListTails(c.ctx, &sidecarpb.ListTailsRequest{Group: c.group})
		if err != nil {
			return err
		}
		tails := list.GetTails()
		if len(tails) != len(s.tails) {
			return c.h.violation("%s has %d tails, it gave way %d times", s.Config.Name, len(tails), len(s.tails))
		}
		for i, want := range s.tails {
			have := tails[len(tails)-1-i] // the newest comes first
			who := fmt.Sprintf("tail %s at %s", have.GetId(), s.Config.Name)
			files := map[int]string{}
			for _, snap := range have.GetSnapshots() {
				files[c.number(snap.GetVolumeId())] = s.SnapshotImage(snap.GetSnapshotId())
			}
			shown, err := c.readFiles(who, files)
			if err != nil {
				return err
			}
			if err := c.h.checkImage(who, shown, want); err != nil {
				return err
			}
			c.tally.tails.Add(1)
		}
	}
	return nil
}

// readFiles reads volumes from files, by their numbers.
func (c *deviceCircle) readFiles(who string, files map[int]string) (content, error) {
	var numbers []int
	var opened []*os.File
	defer func() {
		for _, f := range opened {
			f.Close()
		}
	}()
	for number := range files {
		numbers = append(numbers, number)
	}
	return c.readAll(who, numbers, func(number int) (readerAt, error) {
		f, err := os.Open(files[number])
		if err != nil {
			return nil, err
		}
		opened = append(opened, f)
		size, err := f.Seek(0, io.SeekEnd)
		return &device{f, size}, err
	})
}
