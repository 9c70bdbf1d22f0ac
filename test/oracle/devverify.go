package main

import (
	"fmt"
	"os"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

// verify compares both sites; half of the time a byte of an image of one of them was changed, which is named and
// repaired then.
func (c *deviceCircle) verify() error {
	if err := c.settle(); err != nil {
		return err
	}
	p := c.primary
	numbers := p.numbers()
	s := pick(c.rng, c.primary, c.secondary)
	flipped, off := -1, int64(0)
	if c.rng.IntN(2) == 0 {
		flipped = numbers[c.rng.IntN(len(numbers))]
		off = c.rng.Int64N(p.devices[flipped].size)
		if err := c.unmount(p); err != nil { // a repair at the primary needs it
			return err
		}
		if err := flipByte(s.Image(c.volumes[flipped]), off); err != nil {
			return err
		}
		c.h.note("byte %d of the image of volume %d at %s was changed", off, flipped, s.Config.Name)
	}
	before, err := p.Group(c.ctx, c.group)
	if err != nil {
		return err
	}
	var found *sidecarpb.VerifyStatus
	var asked time.Time
	err = c.eventually("the end of a comparison", func() (bool, string) {
		g, err := p.Group(c.ctx, c.group)
		found = g.GetVerify()
		if err == nil && !found.GetRunning() && found.GetFinishedUnixNanos() != before.GetVerify().GetFinishedUnixNanos() {
			return true, ""
		}
		if err == nil && !found.GetRunning() && time.Since(asked) > again {
			asked = time.Now()
			_, err = p.Sidecar.Verify(c.ctx, &sidecarpb.VerifyRequest{Group: c.group})
		}
		return false, fmt.Sprint(found, err)
	})
	if err != nil {
		return err
	}
	if flipped < 0 {
		if n := found.GetDifferenceCount(); n != 0 {
			return c.h.violation("nothing was changed, and a comparison found %d differences: %v", n, found)
		}
		return nil
	}
	const extent = 64 << 10
	if d := found.GetDifferences(); found.GetDifferenceCount() != 1 || len(d) != 1 ||
		d[0].GetVolumeId() != c.volumes[flipped].ID || d[0].GetOffsetBytes() != off/extent*extent {
		return c.h.violation("byte %d of volume %s was changed, a comparison found %v", off, c.volumes[flipped].ID, found)
	}
	asked = time.Time{}
	err = c.eventually("the repair at "+s.Config.Name, func() (bool, string) {
		g, err := p.Group(c.ctx, c.group)
		if v := g.GetVerify(); err == nil && !v.GetRunning() && v.DifferenceCount != nil && v.GetDifferenceCount() == 0 {
			return true, ""
		}
		if time.Since(asked) > again {
			asked = time.Now()
			_, err = s.Sidecar.Repair(c.ctx, &sidecarpb.RepairRequest{Group: c.group})
		}
		return false, fmt.Sprint(g.GetVerify(), err)
	})
	if err != nil {
		return err
	}
	c.tally.repairs.Add(1)
	for _, number := range numbers {
		if err := c.open(p, number); err != nil {
			return err
		}
	}
	return c.settle()
}

// again is how long an answer is waited for before something is asked for once more.
const again = 500 * time.Millisecond

func flipByte(path string, off int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, off); err != nil {
		return err
	}
	b[0] ^= 0x10
	_, err = f.WriteAt(b, off)
	return err
}
