package driver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/driver/host"
)

// errDead is what everything returns to a driver that a test killed.
var errDead = errors.New("killed by the test")

// machine is a node without root: mount table, loop devices and what is on their backing files. It outlives drivers, as
// the kernel does, and a test can kill a driver before the n-th thing that it does to the machine.
type machine struct {
	mu     sync.Mutex
	mounts []host.MountEntry
	loops  map[string]*host.LoopDevice // by /dev/loopN
	next   int
	files  map[string]*fakeFile // by backing path
	busy   map[string]bool      // mount points whose unmount fails with EBUSY
	frozen map[string]bool      // device numbers

	inodes   map[string]blockdev.FileID // by device
	readOnly map[string]bool            // devices
	// keepsSpace are devices that cannot be discarded.
	keepsSpace map[string]bool
	writeback  map[string]bool // files
	mkfs       []string        // "<backing path> <file system>", of every Make that began
	events     []string        // operations in order, for tests of order

	shutDown map[string]bool             // device numbers
	check    func(context.Context) error // of a file system; nil finds all sound

	// hook is called before each operation; an error is the operation's. It is called with mu held.
	hook func(operation string) error
}

// fakeFile is what is on a backing file.
type fakeFile struct {
	host.Superblock
	Data    bool  // something else than a file system
	FSBytes int64 // size of the file system
	Torn    bool  // mkfs did not end
}

func newMachine() *machine {
	return &machine{loops: map[string]*host.LoopDevice{}, files: map[string]*fakeFile{}, busy: map[string]bool{},
		frozen:   map[string]bool{},
		readOnly: map[string]bool{}, inodes: map[string]blockdev.FileID{}, keepsSpace: map[string]bool{},
		writeback: map[string]bool{}}
}

// reboot forgets what a power loss forgets.
func (m *machine) reboot() {
	m.mounts, m.loops, m.readOnly, m.writeback, m.frozen = nil, map[string]*host.LoopDevice{}, map[string]bool{},
		map[string]bool{}, map[string]bool{}
}

func (m *machine) begin(operation string, args ...any) (func(), error) {
	m.mu.Lock()
	text := fmt.Sprint(append([]any{operation, " "}, args...)...)
	if m.hook != nil {
		if err := m.hook(text); err != nil {
			m.mu.Unlock()
			return nil, err
		}
	}
	m.events = append(m.events, text)
	return m.mu.Unlock, nil
}

func (m *machine) file(device string) (*fakeFile, *host.LoopDevice, error) {
	l, ok := m.loops[device]
	if !ok {
		return nil, nil, fmt.Errorf("%s: %w", device, unix.ENXIO)
	}
	f, ok := m.files[l.BackingPath]
	if !ok {
		f = &fakeFile{}
		m.files[l.BackingPath] = f
	}
	return f, l, nil
}

// Mounter

type fakeMounter struct{ *machine }

func (m fakeMounter) Mounts() ([]host.MountEntry, error) {
	done, err := m.begin("mounts")
	if err != nil {
		return nil, err
	}
	defer done()
	return slices.Clone(m.mounts), nil
}

func (m fakeMounter) Mount(_ context.Context, device, target, fsType string, options []string) error {
	done, err := m.begin("mount", device, " ", target, " ", fsType, " ", strings.Join(options, ","))
	if err != nil {
		return err
	}
	defer done()
	f, l, err := m.file(device)
	if err != nil {
		return err
	}
	if f.FSType != fsType || f.Torn {
		return fmt.Errorf("mount %s: wrong fs type, want %s, have %+v", device, fsType, f)
	}
	m.mounts = append(m.mounts, host.MountEntry{Mountpoint: target, Source: device, Device: l.Number, Root: "/",
		FSType:   fsType,
		ReadOnly: slices.Contains(options, "ro")})
	return nil
}

func (m fakeMounter) Bind(source, target string, readOnly bool) error {
	done, err := m.begin("bind", source, " ", target)
	if err != nil {
		return err
	}
	defer done()
	if strings.HasPrefix(source, "/dev/") {
		if _, ok := m.loops[source]; !ok {
			return fmt.Errorf("bind %s: %w", source, unix.ENOENT)
		}
		m.mounts = append(m.mounts, host.MountEntry{Mountpoint: target, Source: "devtmpfs", Device: "0:5", Root: "/" +
			filepath.Base(source),
			FSType: "devtmpfs", ReadOnly: readOnly})
		return nil
	}
	at := host.MountsAt(m.mounts, source)
	if len(at) == 0 {
		return fmt.Errorf("bind %s: not a mount", source)
	}
	entry := at[len(at)-1]
	entry.Mountpoint, entry.ReadOnly = target, entry.ReadOnly || readOnly
	m.mounts = append(m.mounts, entry)
	return nil
}

func (m fakeMounter) Unmount(target string) error {
	done, err := m.begin("unmount", target)
	if err != nil {
		return err
	}
	defer done()
	if at := host.MountsAt(m.mounts, target); len(at) > 0 && m.frozen[at[len(at)-1].Device] &&
		len(slices.DeleteFunc(slices.Clone(m.mounts), func(e host.MountEntry) bool {
			return e.Device != at[len(at)-1].Device
		})) == 1 {
		return fmt.Errorf("test: %s is unmounted for the last time while it is frozen", target)
	}
	if m.busy[target] {
		return fmt.Errorf("umount %s: %w", target, unix.EBUSY)
	}
	for i := len(m.mounts) - 1; i >= 0; i-- {
		if m.mounts[i].Mountpoint == target {
			number := m.mounts[i].Device
			m.mounts = slices.Delete(m.mounts, i, i+1)
			if !slices.ContainsFunc(m.mounts, func(e host.MountEntry) bool { return e.Device == number }) {
				delete(m.shutDown, number)
			}
			return nil
		}
	}
	return fmt.Errorf("umount %s: %w", target, unix.EINVAL)
}

// Loops

type fakeLoops struct{ *machine }

func (m fakeLoops) Attach(config blockdev.LoopConfig) (host.Device, error) {
	done, err := m.begin("attach", config.BackingPath)
	if err != nil {
		return host.Device{}, err
	}
	defer done()
	for _, l := range m.loops {
		if l.BackingPath == config.BackingPath {
			return host.Device{}, fmt.Errorf("test: %s would have a second device beside %s", config.BackingPath, l.Path)
		}
	}
	d := host.Device{Path: fmt.Sprintf("/dev/loop%d", m.next), Number: fmt.Sprintf("7:%d", m.next)}
	m.next++
	m.keepsSpace[d.Path] = config.KeepSpace
	m.inodes[d.Path] = blockdev.FileID{Device: 1, Inode: uint64(m.next)}
	m.loops[d.Path] = &host.LoopDevice{Device: d, BackingPath: config.BackingPath, SizeBytes: config.SizeLimitBytes}
	return d, nil
}

func (m fakeLoops) List() ([]host.LoopDevice, error) {
	done, err := m.begin("list loops")
	if err != nil {
		return nil, err
	}
	defer done()
	var all []host.LoopDevice
	for _, l := range m.loops {
		all = append(all, *l)
	}
	slices.SortFunc(all, func(a, b host.LoopDevice) int { return strings.Compare(a.Path, b.Path) })
	return all, nil
}

func (m fakeLoops) File(device string) (blockdev.FileID, error) {
	done, err := m.begin("file of ", device)
	if err != nil {
		return blockdev.FileID{}, err
	}
	defer done()
	l, ok := m.loops[device]
	if !ok {
		return blockdev.FileID{}, fs.ErrNotExist
	}
	return m.inodes[l.Path], nil
}

func (m fakeLoops) KeepSpace(device string) error {
	done, err := m.begin("keep space", device)
	if err != nil {
		return err
	}
	defer done()
	m.keepsSpace[device] = true
	return nil
}

func (m fakeLoops) SetSize(device string, sizeBytes int64) error {
	done, err := m.begin("set size", device, " ", sizeBytes)
	if err != nil {
		return err
	}
	defer done()
	_, l, err := m.file(device)
	if err == nil {
		l.SizeBytes = sizeBytes
	}
	return err
}

func (m fakeLoops) Detach(device host.LoopDevice) error {
	done, err := m.begin("detach", device.Path)
	if err != nil {
		return err
	}
	defer done()
	if len(host.MountsOf(m.mounts, device.Device)) > 0 {
		return fmt.Errorf("detach %s: %w", device.Path, unix.EBUSY)
	}
	if m.writeback[device.BackingPath] {
		return fmt.Errorf("test: %s detached while writeback has its file open", device.Path)
	}
	delete(m.loops, device.Path)
	delete(m.keepsSpace, device.Path)
	return nil
}

// FileSystems

type fakeFileSystems struct{ *machine }

func (m fakeFileSystems) Superblock(device string) (host.Superblock, error) {
	done, err := m.begin("superblock", device)
	if err != nil {
		return host.Superblock{}, err
	}
	defer done()
	f, _, err := m.file(device)
	if err != nil {
		return host.Superblock{}, err
	}
	sb := f.Superblock
	if sb.FSType != "" {
		sb.SizeBytes = f.FSBytes
	}
	return sb, nil
}

func (m fakeFileSystems) Blank(device string) (bool, error) {
	done, err := m.begin("blank", device)
	if err != nil {
		return false, err
	}
	defer done()
	f, _, err := m.file(device)
	if err != nil {
		return false, err
	}
	return f.FSType == "" && !f.Data && !f.Torn, nil
}

// Make begins and ends in two operations, so that a driver can die between them.
func (m fakeFileSystems) Make(_ context.Context, device string, spec host.FormatSpec, force bool) error {
	done, err := m.begin("mkfs begins", device)
	if err != nil {
		return err
	}
	f, l, err := m.file(device)
	if err == nil && f.FSType != "" && !force {
		err = fmt.Errorf("mkfs: %s has a file system", device)
	}
	if err == nil {
		m.mkfs = append(m.mkfs, l.BackingPath+" "+spec.FSType)
		*f = fakeFile{Superblock: host.Superblock{FSType: spec.FSType, UUID: spec.UUID}, Torn: true}
	}
	done()
	if err != nil {
		return err
	}
	done, err = m.begin("mkfs ends", device)
	if err != nil {
		return err
	}
	defer done()
	f.Torn, f.FSBytes = false, l.SizeBytes
	return nil
}

func (m fakeFileSystems) Check(ctx context.Context, device, fsType string) error {
	done, err := m.begin("fsck", device, " ", fsType)
	if err != nil {
		return err
	}
	check := m.check
	done()
	if check != nil {
		return check(ctx)
	}
	return nil
}

func (m fakeFileSystems) Grow(_ context.Context, device, mountPath, fsType string) error {
	done, err := m.begin("grow", device, " ", mountPath, " ", fsType)
	if err != nil {
		return err
	}
	defer done()
	f, l, err := m.file(device)
	if err == nil {
		f.FSBytes = l.SizeBytes
	}
	return err
}

func (m fakeFileSystems) Freeze(_ context.Context, path, device string) error {
	done, err := m.begin("freeze", path, " ", device)
	if err != nil {
		return err
	}
	defer done()
	number := m.numberAt(path)
	if m.frozen[number] {
		return unix.EBUSY
	}
	m.frozen[number] = true
	return nil
}

func (m fakeFileSystems) Thaw(path string) error {
	done, err := m.begin("thaw", path)
	if err != nil {
		return err
	}
	defer done()
	number := m.numberAt(path)
	if !m.frozen[number] {
		return host.ErrNotFrozen
	}
	delete(m.frozen, number)
	return nil
}

// numberAt is the device number of the file system on a path.
func (m *machine) numberAt(path string) string {
	at := host.MountsAt(m.mounts, path)
	if len(at) == 0 {
		return ""
	}
	return at[len(at)-1].Device
}

func (m fakeFileSystems) ShutDown(path string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.shutDown[m.numberAt(path)]
}

func (m fakeFileSystems) Usage(path string) (host.Usage, error) {
	done, err := m.begin("usage", path)
	if err != nil {
		return host.Usage{}, err
	}
	defer done()
	at := host.MountsAt(m.mounts, path)
	f, _, err := m.file(at[len(at)-1].Source)
	if err != nil {
		return host.Usage{}, err
	}
	return host.Usage{TotalBytes: f.FSBytes, AvailableBytes: f.FSBytes, TotalInodes: 100, AvailableInodes: 99,
		UsedInodes: 1}, nil
}

func (m fakeFileSystems) DeviceSize(device string) (int64, error) {
	done, err := m.begin("device size", device)
	if err != nil {
		return 0, err
	}
	defer done()
	_, l, err := m.file(device)
	if err != nil {
		return 0, err
	}
	return l.SizeBytes, nil
}

func (m fakeFileSystems) SetDeviceReadOnly(device string, readOnly bool) error {
	done, err := m.begin("set read-only", device, " ", readOnly)
	if err != nil {
		return err
	}
	defer done()
	m.readOnly[device] = readOnly
	return nil
}

// Writeback

type fakeWriteback struct{ *machine }

func (m fakeWriteback) Add(path string) error {
	done, err := m.begin("writeback add", path)
	if err != nil {
		return err
	}
	defer done()
	m.writeback[path] = true
	return nil
}

func (m fakeWriteback) Remove(_ context.Context, path string) error {
	done, err := m.begin("writeback remove", path)
	if err != nil {
		return err
	}
	defer done()
	delete(m.writeback, path)
	return nil
}
