package blockdevtest

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
)

// brokenEnv makes TestBrokenDevice run the suite on one of the broken devices, which must fail.
const brokenEnv = "BLOCKDEVTEST_BROKEN"

// broken devices do one thing wrong each; the value is a case that must notice.
var broken = map[string]struct {
	noticedBy string
	wrap      func(*MemDevice) blockdev.Device
}{
	"none":           {"", func(d *MemDevice) blockdev.Device { return d }},
	"lost write":     {"own writes", func(d *MemDevice) blockdev.Device { return &lostWrite{MemDevice: d} }},
	"no discard":     {"discard", func(d *MemDevice) blockdev.Device { return noDiscard{d} }},
	"page discard":   {"random", func(d *MemDevice) blockdev.Device { return pageZero{d} }},
	"short read":     {"large", func(d *MemDevice) blockdev.Device { return shortRead{d} }},
	"clamped ranges": {"out of range", func(d *MemDevice) blockdev.Device { return clamped{d} }},
	"retained": {"buffer not retained",
		func(d *MemDevice) blockdev.Device { return &retained{MemDevice: d} }},
}

// lostWrite forgets each write to the device's last block.
type lostWrite struct{ *MemDevice }

func (d *lostWrite) WriteAt(p []byte, off int64) (int, error) {
	if off == d.Size()-4096 {
		return len(p), nil
	}
	return d.MemDevice.WriteAt(p, off)
}

type noDiscard struct{ *MemDevice }

func (noDiscard) Discard(_, _ int64) error { return nil }

// pageZero zeroes whole pages around what it was asked for.
type pageZero struct{ *MemDevice }

func (d pageZero) Zero(off, n int64) error {
	from, to := off/4096*4096, min((off+n+4095)/4096*4096, d.Size())
	return d.MemDevice.Zero(from, to-from)
}

// shortRead returns at most 1 MiB.
type shortRead struct{ *MemDevice }

func (d shortRead) ReadAt(p []byte, off int64) (int, error) {
	return d.MemDevice.ReadAt(p[:min(len(p), 1<<20)], off)
}

// clamped writes what fits.
type clamped struct{ *MemDevice }

func (d clamped) WriteAt(p []byte, off int64) (int, error) {
	if room := d.Size() - off; off >= 0 && room >= 0 && int64(len(p)) > room {
		return d.MemDevice.WriteAt(p[:room], off)
	}
	return d.MemDevice.WriteAt(p, off)
}

// retained keeps the caller's buffer until the next call.
type retained struct {
	*MemDevice
	p   []byte
	off int64
}

func (d *retained) WriteAt(p []byte, off int64) (int, error) {
	if err := blockdev.CheckRange(off, int64(len(p)), d.Size()); err != nil {
		return 0, err
	}
	d.settle()
	d.p, d.off = p, off
	return len(p), nil
}

func (d *retained) settle() {
	_, _ = d.MemDevice.WriteAt(d.p, d.off)
	d.p = nil
}

func (d *retained) ReadAt(p []byte, off int64) (int, error) {
	d.settle()
	return d.MemDevice.ReadAt(p, off)
}

// TestBrokenDevice is what TestSuiteNotices runs in a process of its own.
func TestBrokenDevice(t *testing.T) {
	name := os.Getenv(brokenEnv)
	if name == "" {
		t.Skip("run by TestSuiteNotices")
	}
	Run(t, "broken",
		func(_ *testing.T, size int64) blockdev.Device { return broken[name].wrap(NewMemDevice(size)) })
}

// TestSuiteNotices: the suite passes a right device and fails each wrong one, in the case made for that.
func TestSuiteNotices(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range broken {
		t.Run(name, func(t *testing.T) {
			run := "^TestBrokenDevice$/^broken$"
			if b.noticedBy != "" {
				run += "/^" + strings.ReplaceAll(b.noticedBy, " ", "_") + "$"
			}
			cmd := exec.Command(exe, "-test.run", run, "-test.v")
			cmd.Env = append(os.Environ(), brokenEnv+"="+name)
			out, err := cmd.CombinedOutput()
			if !strings.Contains(string(out), "TestBrokenDevice/broken/") {
				t.Fatalf("no case ran: %v\n%s", err, out)
			}
			if (err == nil) != (b.noticedBy == "") {
				t.Errorf("the suite ended with %v\n%s", err, out)
			}
		})
	}
}
