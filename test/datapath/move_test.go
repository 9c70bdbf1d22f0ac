package datapath

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/internal/bug"
	"github.com/slipstream-storage/slipstream/internal/testsite"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
	"github.com/slipstream-storage/slipstream/pkg/driver/parameter"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A volume is in one of these groups, or in none.
var moveGroups = []string{"left", "right"}

// moved is a volume that goes from group to group while fio writes and verifies it.
type moved struct {
	*testsite.Volume
	file  string // what fio is pointed at: the device, or a file on the file system
	group string // that it is in; empty for none
}

const movedLoadBytes = 32 << 20

// verifyPass runs fio once over each volume: it writes, and then verifies what it wrote.
func verifyPass(t *testing.T, ctx context.Context, rng *rand.Rand, volumes ...*moved) error {
	t.Helper()
	var waits []func() error
	for _, v := range volumes {
		waits = append(waits, startVerify(t, ctx, rng, v.file, movedLoadBytes, 4<<20))
	}
	var errs []error
	for i, wait := range waits {
		if err := wait(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", volumes[i].file, err))
		}
	}
	return errors.Join(errs...)
}

// mover changes the groups of volumes through the driver, and kills processes meanwhile.
type mover struct {
	site        *testsite.Site
	rng         *rand.Rand
	interrupted int // calls that a kill broke off
}

// sendTo are the parameters that send a volume to a group, or to none.
func sendTo(group string) map[string]string {
	if group == "" {
		return map[string]string{parameter.KeyReplication: parameter.ReplicationOff}
	}
	return map[string]string{parameter.KeyConsistencyGroup: group}
}

// change sends a volume to a group, or to none, with a kill somewhere in the call, and asks again until it is there.
func (m *mover) change(ctx context.Context, v *moved, group string) error {
	parameters := sendTo(group)
	result := make(chan error, 1)
	go func() { result <- m.site.Modify(ctx, v.Volume, parameters) }()
	killErr := m.killSome(ctx)
	err := <-result
	if killErr != nil {
		return killErr
	}
	if err != nil {
		m.interrupted++
	}
	for err != nil {
		// The process that the call was with is gone, or has just come.
		if code := status.Code(err); code != codes.Unavailable {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		time.Sleep(10 * time.Millisecond)
		err = m.site.Modify(ctx, v.Volume, parameters)
	}
	v.group = group
	for _, name := range moveGroups {
		g, err := m.site.Group(ctx, name)
		if err != nil {
			return err
		}
		member := slices.ContainsFunc(g.GetVolumes(), func(s *sidecarpb.VolumeStatus) bool { return s.GetVolumeId() == v.ID })
		if member != (name == group) {
			return fmt.Errorf("volume %s was sent to group %q; member of %s: %v", v.ID, group, name, member)
		}
	}
	return nil
}

// killSome kills the replicator, the driver or both, soon, and starts them again in either order.
func (m *mover) killSome(ctx context.Context) error {
	s := m.site
	launch := []func() error{s.LaunchReplicator, s.LaunchDriver}
	m.rng.Shuffle(len(launch), func(i, j int) { launch[i], launch[j] = launch[j], launch[i] })
	victims := [][]*testsite.Process{{s.Replicator()}, {s.Driver()}, {s.Replicator(), s.Driver()}}[m.rng.IntN(3)]
	time.Sleep(time.Duration(m.rng.IntN(60)) * time.Millisecond)
	if err := killTogether(victims...); err != nil {
		return err
	}
	time.Sleep(time.Duration(m.rng.IntN(100)) * time.Millisecond) // I/O waits meanwhile
	for _, again := range launch {
		if err := again(); err != nil {
			return err
		}
	}
	return s.WaitReady(ctx)
}

// TestMoveUnderLoad sends volumes from group to group, out of all and back, while they are written to and verified, and
// kills the replicator, the driver or both in the middle of each call. No I/O fails, what is read is what was written,
// and in the end the images of both sites are identical and the copies open.
func TestMoveUnderLoad(t *testing.T) {
	if testing.Short() {
		t.Skip("takes two minutes")
	}
	const changes, leastInterrupted, mostChanges = 12, 4, 48
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Minute)
	defer cancel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	p := newPair(t, ctx)
	for _, name := range moveGroups {
		group(t, ctx, p.A, &sidecarpb.CreateGroupRequest{
			Name: name, Settings: &sidecarpb.GroupSettings{Remote: new("site-b"), JournalSizeBytes: new(int64(64 << 20))},
		})
	}
	block, dev := blockVolume(t, ctx, p.A, "block", "left", 64<<20, "ack")
	volumes := []*moved{{Volume: block, file: dev, group: "left"}}
	for fsType, sizeBytes := range map[string]int64{"ext4": 64 << 20, "xfs": 320 << 20} {
		v, err := p.A.CreateVolume(ctx, testsite.VolumeOptions{Name: fsType, SizeBytes: sizeBytes, FSType: fsType,
			Parameters: testsite.Replicable()})
		if err != nil {
			t.Fatal(err)
		}
		path, err := p.A.Mount(ctx, v)
		if err != nil {
			t.Fatal(err)
		}
		volumes = append(volumes, &moved{Volume: v, file: filepath.Join(path, "load")})
	}

	m := &mover{site: p.A, rng: rand.New(rand.NewPCG(seed, 1))}
	done := make(chan error, 1)
	n := 0
	moveCtx, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		for ; n < mostChanges && (n < changes || m.interrupted < leastInterrupted); n++ {
			v := volumes[m.rng.IntN(len(volumes))]
			others := slices.DeleteFunc([]string{"left", "right", ""}, func(g string) bool { return g == v.group })
			if err := m.change(moveCtx, v, others[m.rng.IntN(len(others))]); err != nil {
				done <- err
				return
			}
		}
		for i, v := range volumes {
			if v.group != "" {
				continue
			}
			if err := m.change(moveCtx, v, moveGroups[i%2]); err != nil { // so that it has a copy
				done <- err
				return
			}
		}
		done <- nil
	}()
	passes := 0
	for ended := false; !ended; passes++ {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			ended = true // one more pass without kills
		default:
		}
		if err := verifyPass(t, ctx, rng, volumes...); err != nil {
			t.Errorf("pass %d: %v", passes, err)
			stop()
			if !ended {
				<-done
			}
			return
		}
	}
	t.Logf("%d changes of group, each with a kill, %d of them broken off by it; %d verified passes over %d volumes", n,
		m.interrupted, passes, len(volumes))
	if m.interrupted < leastInterrupted {
		t.Errorf("%d of %d calls were broken off by a kill: the test shows little", m.interrupted, n)
	}

	for _, v := range volumes {
		if err := p.A.Unmount(ctx, v.Volume); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range moveGroups {
		if err := p.WaitApplied(ctx, name); err != nil {
			t.Fatal(err)
		}
	}
	for _, v := range volumes {
		sameDevices(t, p.A.Image(v.Volume), p.B.Image(v.Volume))
	}
	promoted := map[string]bool{}
	for _, v := range volumes {
		if !promoted[v.group] {
			relocate(t, ctx, p, v.group, v.Volume)
			promoted[v.group] = true
		}
		if _, err := p.B.Mount(ctx, v.Volume); err != nil {
			t.Errorf("volume %s does not open at the other site: %v", v.ID, err)
		}
	}
}

// TestCatchesVolumesThatLeaveTooEarly: where a volume leaves its group with writes that are not in its image, the load
// notices.
func TestCatchesVolumesThatLeaveTooEarly(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	p := newFaultyPair(t, ctx, bug.LeaveUnapplied)
	group(t, ctx, p.A, &sidecarpb.CreateGroupRequest{
		Name: "left", Settings: &sidecarpb.GroupSettings{Remote: new("site-b"), JournalSizeBytes: new(int64(64 << 20))},
	})
	block, dev := blockVolume(t, ctx, p.A, "block", "left", 64<<20, "ack")
	v := &moved{Volume: block, file: dev, group: "left"}
	rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	done := make(chan error, 1)
	moveCtx, stop := context.WithCancel(ctx)
	defer func() { stop(); <-done }()
	go func() {
		for n := 0; ; n++ {
			if err := p.A.Modify(moveCtx, v.Volume, sendTo([]string{"", "left"}[n%2])); err != nil {
				done <- err
				return
			}
		}
	}()
	for range 50 {
		err := verifyPass(t, ctx, rng, v)
		switch {
		case ctx.Err() != nil:
			t.Fatal(err)
		case err != nil:
			return
		}
	}
	t.Error(
		"the load outlived 50 passes although volumes leave without what was written last: TestMoveUnderLoad would " +
			"not notice")
}
