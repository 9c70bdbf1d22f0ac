//go:build slipstream_bugs

package host

import (
	"context"
	"fmt"
	"os"
	"path"
	"strconv"
	"sync/atomic"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// killAtEnv has the number of the step before which the driver kills itself with SIGKILL. Steps are what it does to the
// machine, to the pool's directories, and to the replicator, counted from its start; each is printed.
const killAtEnv = "SLIPSTREAM_KILL_AT"

var (
	killAt, _ = strconv.ParseInt(os.Getenv(killAtEnv), 10, 64)
	stepsDone atomic.Int64
)

// step is called before each of them.
func step(what ...any) {
	if killAt == 0 {
		return
	}
	n := stepsDone.Add(1)
	fmt.Fprintf(os.Stderr, "step %d: %s\n", n, fmt.Sprint(what...))
	if n == killAt {
		_ = unix.Kill(unix.Getpid(), unix.SIGKILL)
		select {} // it takes effect before anything else happens here
	}
}

// withKillSteps counts the steps of a system. Those that only write to a file that has no name yet, or not its last,
// are no steps: dying before them is dying before what gives it the name.
func withKillSteps(sys System) System {
	sys.FS = vfs.NewErrFS(sys.FS, func(op vfs.Op, name string) error {
		switch op {
		case vfs.OpRename, vfs.OpRemove, vfs.OpRemoveAll, vfs.OpTruncate, vfs.OpPreallocate:
			step(op, " ", name)
		}
		return nil
	})
	sys.Mounter = steppedMounter{sys.Mounter}
	sys.Filesystems = steppedFileSystems{sys.Filesystems}
	sys.Loops = steppedLoops{sys.Loops}
	sys.Writeback = steppedWriteback{sys.Writeback}
	return sys
}

// KillStepCalls counts the calls of the replicator that change something as steps.
func KillStepCalls() []grpc.UnaryClientInterceptor {
	return []grpc.UnaryClientInterceptor{func(ctx context.Context, method string, request, response any,
		conn *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
		switch name := path.Base(method); name {
		case "Probe", "ListGroups", "ListCuts": // they change nothing
		default:
			step(name)
		}
		return invoke(ctx, method, request, response, conn, options...)
	}}
}

type steppedMounter struct{ Mounter }

func (m steppedMounter) Mount(ctx context.Context, device, target, fsType string, options []string) error {
	step("mount ", target)
	return m.Mounter.Mount(ctx, device, target, fsType, options)
}

func (m steppedMounter) Bind(source, target string, readOnly bool) error {
	step("bind ", target)
	return m.Mounter.Bind(source, target, readOnly)
}

func (m steppedMounter) Unmount(target string) error {
	step("unmount ", target)
	err := m.Mounter.Unmount(target)
	step("after the unmount of ", target)
	return err
}

type steppedFileSystems struct{ FileSystems }

func (m steppedFileSystems) Make(ctx context.Context, device string, spec FormatSpec, force bool) error {
	step("mkfs ", device)
	err := m.FileSystems.Make(ctx, device, spec, force)
	step("after mkfs ", device)
	return err
}

func (m steppedFileSystems) Check(ctx context.Context, device, fsType string) error {
	step("fsck ", device)
	return m.FileSystems.Check(ctx, device, fsType)
}

func (m steppedFileSystems) Grow(ctx context.Context, device, mountPath, fsType string) error {
	step("grow ", mountPath)
	return m.FileSystems.Grow(ctx, device, mountPath, fsType)
}

func (m steppedFileSystems) SetDeviceReadOnly(device string, readOnly bool) error {
	step("set read-only ", device)
	return m.FileSystems.SetDeviceReadOnly(device, readOnly)
}

type steppedLoops struct{ Loops }

func (m steppedLoops) Attach(config blockdev.LoopConfig) (Device, error) {
	step("attach ", config.BackingPath)
	device, err := m.Loops.Attach(config)
	step("after the attachment of ", config.BackingPath)
	return device, err
}

func (m steppedLoops) KeepSpace(device string) error {
	step("keep space ", device)
	return m.Loops.KeepSpace(device)
}

func (m steppedLoops) SetSize(device string, sizeBytes int64) error {
	step("set size ", device)
	return m.Loops.SetSize(device, sizeBytes)
}

func (m steppedLoops) Detach(device LoopDevice) error {
	step("detach ", device.Path)
	err := m.Loops.Detach(device)
	step("after the detachment of ", device.Path)
	return err
}

type steppedWriteback struct{ Writeback }

func (m steppedWriteback) Add(path string) error {
	step("writeback add ", path)
	return m.Writeback.Add(path)
}

func (m steppedWriteback) Remove(ctx context.Context, path string) error {
	step("writeback remove ", path)
	return m.Writeback.Remove(ctx, path)
}
