package blockdev

import (
	"errors"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// slowDisk is a file system on which reserving space takes until release is called.
type slowDisk struct {
	vfs.FS
	started chan string // the files whose space is being reserved
	proceed chan error  // what a reservation returns
}

func newSlowDisk(inner vfs.FS) *slowDisk {
	d := &slowDisk{started: make(chan string), proceed: make(chan error)}
	d.FS = vfs.NewErrFS(inner, func(op vfs.Op, name string) error {
		if op != vfs.OpPreallocate || filepath.Base(name) != ImageFile {
			return nil
		}
		d.started <- name
		return <-d.proceed
	})
	return d
}

// finishes fails the test when a call does not return. It waits long, so that a slow machine is no failure.
func finishes(t *testing.T, what string, call func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); call() }()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		t.Fatalf("%s waits for another call or process", what)
	}
}

// TestReservationHoldsNobodyUp: while the space of a thick volume is reserved, other volumes come, change and go,
// Sweep leaves the new one alone, and it is not there before it is whole. However long a process waits for the lock of
// a pool, it does not wait for that of the new volume with the records locked.
func TestReservationHoldsNobodyUp(t *testing.T) {
	for name, inner := range map[string]vfs.FS{"os": vfs.OS, "mem": vfs.NewMem()} {
		t.Run(name, func(t *testing.T) {
			dir := "/pool"
			if inner == vfs.OS {
				dir = filepath.Join(t.TempDir(), "pool")
			}
			d := newSlowDisk(inner)
			p := openPool(t, d.FS, dir, WhoDriver)
			other := openPool(t, d.FS, dir, WhoReplicator)
			lockPatiently(t, time.Hour)
			thick := volume("thick")
			thick.Thick = true
			type result struct {
				rec *VolumeRecord
				err error
			}
			created, grown := make(chan result, 2), make(chan result, 1)
			create := func() { rec, err := p.Create(thick); created <- result{rec, err} }
			go create()
			<-d.started

			finishes(t, "a change", func() {
				_, err := other.Create(volume("a"))
				noErr(t, err)
				_, err = other.Update("a", func(r *VolumeRecord) error { r.Group = "g"; return nil })
				noErr(t, err)
				_, err = other.Grow("a", 128<<10)
				noErr(t, err)
				noErr(t, other.Delete("a"))
				swept, err := other.Sweep()
				noErr(t, err)
				if len(swept) > 0 {
					t.Errorf("Sweep removed %q", swept)
				}
			})
			if got := ids(t, other); len(got) != 0 {
				t.Errorf("the pool holds %q", got)
			}
			// The second creation of the same volume waits for the first and finds the volume.
			go create()
			d.proceed <- nil
			first, second := <-created, <-created
			if first.err != nil {
				first, second = second, first
			}
			noErr(t, first.err)
			if !errors.Is(second.err, ErrVolumeExists) {
				t.Errorf("the second creation: %v", second.err)
			}

			go func() { rec, err := p.Grow("thick", 256<<10); grown <- result{rec, err} }()
			<-d.started
			finishes(t, "a change of the volume that grows", func() {
				_, err := other.Update("thick", func(r *VolumeRecord) error { r.Group = "g"; return nil })
				noErr(t, err)
			})
			d.proceed <- nil
			got := <-grown
			noErr(t, got.err)
			if got.rec.SizeBytes != 256<<10 || got.rec.Group != "g" {
				t.Errorf("after growing: %v", got.rec)
			}
		})
	}
}

// TestGrowDeleted: a volume that is deleted and created again while it grows does not get the size.
func TestGrowDeleted(t *testing.T) {
	d := newSlowDisk(vfs.NewMem())
	p := openPool(t, d.FS, "/pool", WhoDriver)
	thick, thin := volume("a"), volume("a")
	thick.Thick, thick.CreatedUnixNanos, thin.CreatedUnixNanos = true, 1, 2
	var wg sync.WaitGroup
	wg.Go(func() { _, err := p.Create(thick); noErr(t, err) })
	<-d.started
	d.proceed <- nil
	wg.Wait()
	var err error
	wg.Go(func() { _, err = p.Grow("a", 256<<10) })
	<-d.started
	noErr(t, p.Delete("a"))
	_, createErr := p.Create(thin)
	noErr(t, createErr)
	d.proceed <- nil
	wg.Wait()
	wantErrText(t, err, "volume a", "try again")
	if rec, err := p.Get("a"); err != nil || rec.SizeBytes != thin.SizeBytes {
		t.Errorf("%v, %v", rec, err)
	}
	img, err := p.OpenImage("a")
	noErr(t, err)
	noErr(t, img.Close())
}

// TestReservationFails: without space nothing is left, and the call that waited for the volume creates it.
func TestReservationFails(t *testing.T) {
	m := vfs.NewMem()
	d := newSlowDisk(m)
	p := openPool(t, d.FS, "/pool", WhoDriver)
	thick := volume("a")
	thick.Thick = true
	boom := errors.New("boom")
	errs := make(chan error, 2)
	for range 2 {
		go func() { _, err := p.Create(thick); errs <- err }()
	}
	<-d.started
	d.proceed <- boom
	if err := <-errs; !errors.Is(err, boom) {
		t.Errorf("without space: %v", err)
	}
	<-d.started
	d.proceed <- nil
	noErr(t, <-errs)
	names, err := m.ReadDir("/pool/volumes")
	noErr(t, err)
	if len(names) != 1 || names[0] != "a" {
		t.Errorf("the pool holds %q", names)
	}
}
