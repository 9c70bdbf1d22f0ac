package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slipstream-storage/slipstream/internal/testsite"
	"github.com/slipstream-storage/slipstream/pkg/blockdev"
)

// The nearest peer in user space is qemu-storage-daemon: it exports an image through FUSE, a loop device over that
// makes it a block device as Slipstream's shim does, and a mirror job copies it to an NBD server, here a second daemon
// with its own image in place of the other site. copy-mode=background copies what is dirty when it gets to it, without
// an order; with write-blocking a write is complete when both have it.
//
// A writable FUSE export and a mirror job refuse to share a node (QEMU 7.2: both want the permission to resize). So
// the mirrored node goes through NBD on a Unix socket to a daemon in front that exports it through FUSE. That hop is
// the peer's cost of being used in this way; the variant without a mirror has no such hop, and shows the export alone.

// daemon is a running qemu-storage-daemon.
type daemon struct {
	cmd   *exec.Cmd
	log   string
	ended chan struct{} // closed when the process was waited for
	loop  string        // the device over its FUSE export, if there is one
}

func startDaemon(logPath string, args ...string) (*daemon, error) {
	log, err := os.Create(logPath)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	d := &daemon{cmd: exec.Command("qemu-storage-daemon", args...), log: logPath, ended: make(chan struct{})}
	d.cmd.Dir, d.cmd.Stdout, d.cmd.Stderr = "/", log, log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := d.cmd.Start(); err != nil {
		return nil, fmt.Errorf("%w: run hack/deps.sh bench", err)
	}
	go func() {
		_ = d.cmd.Wait() // how it ended stands in its log
		close(d.ended)
	}()
	return d, nil
}

// stop takes the device away, then the process.
func (d *daemon) stop() error {
	var errs []error
	if d.loop != "" {
		errs = append(errs, blockdev.DetachLoop(d.loop))
	}
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		if err := d.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return errors.Join(append(errs, err)...)
		}
		select {
		case <-d.ended:
			return errors.Join(errs...)
		case <-time.After(20 * time.Second):
		}
	}
	return errors.Join(append(errs,
		fmt.Errorf("qemu-storage-daemon, pid %d, does not end: it waits in the kernel", d.cmd.Process.Pid))...)
}

// waitFor waits until something is there that the daemon makes when it starts.
func (d *daemon) waitFor(ctx context.Context, what string, there func() error) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		err := there()
		if err == nil {
			return nil
		}
		select {
		case <-d.ended:
			text, _ := os.ReadFile(d.log)
			return fmt.Errorf("qemu-storage-daemon ended:\n%s", text)
		case <-ctx.Done():
			return fmt.Errorf("qemu-storage-daemon: waiting for %s: %w", what, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// qmp is a connection to a daemon's monitor.
type qmp struct {
	conn    net.Conn
	decoder *json.Decoder
}

func dialQMP(ctx context.Context, d *daemon, socket string) (*qmp, error) {
	q := &qmp{}
	if err := d.waitFor(ctx, "its monitor", func() (err error) {
		q.conn, err = net.Dial("unix", socket)
		return err
	}); err != nil {
		return nil, err
	}
	q.decoder = json.NewDecoder(q.conn)
	var greeting struct{ QMP json.RawMessage }
	err := q.decoder.Decode(&greeting)
	if err == nil {
		_, err = q.call("qmp_capabilities", nil)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("qemu-storage-daemon's monitor: %w", err), q.conn.Close())
	}
	return q, nil
}

// call runs a command and returns its result; events meanwhile are dropped.
func (q *qmp) call(command string, arguments any) (json.RawMessage, error) {
	request := map[string]any{"execute": command}
	if arguments != nil {
		request["arguments"] = arguments
	}
	if err := errors.Join(q.conn.SetDeadline(time.Now().Add(time.Minute)),
		json.NewEncoder(q.conn).Encode(request)); err != nil {
		return nil, err
	}
	for {
		var answer struct {
			Return json.RawMessage `json:"return"`
			Error  *struct {
				Text string `json:"desc"`
			} `json:"error"`
		}
		switch err := q.decoder.Decode(&answer); {
		case err != nil:
			return nil, fmt.Errorf("%s: %w", command, err)
		case answer.Error != nil:
			return nil, fmt.Errorf("%s: %s", command, answer.Error.Text)
		case answer.Return != nil:
			return answer.Return, nil
		}
	}
}

// blockJob is what is used of an entry of query-block-jobs.
type blockJob struct {
	Ready  bool  `json:"ready"`
	Offset int64 `json:"offset"`
	Len    int64 `json:"len"`
	Busy   bool  `json:"busy"`
}

// waitMirrored waits until the mirror has nothing left to copy.
func (q *qmp) waitMirrored(ctx context.Context, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	for {
		answer, err := q.call("query-block-jobs", nil)
		if err != nil {
			return err
		}
		var jobs []blockJob
		if err := json.Unmarshal(answer, &jobs); err != nil {
			return err
		}
		if len(jobs) != 1 {
			return fmt.Errorf("the mirror job is gone: %s", answer)
		}
		if jobs[0].Ready && jobs[0].Offset == jobs[0].Len {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the mirror does not catch up: %s: %w", answer, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// peerBeds makes beds of qemu-storage-daemon in a pair's directory: without a mirror, and one for each mode of it. stop
// is to be called in any case, before the pair is closed.
func (e *env) peerBeds(ctx context.Context, pair *testsite.Pair,
	o bedOptions) (stop func() error, beds []*bed, err error) {
	var running []func() error
	stop = func() error {
		var errs []error
		for i := len(running) - 1; i >= 0; i-- {
			errs = append(errs, running[i]())
		}
		return errors.Join(errs...)
	}
	for i, m := range []struct {
		variant variant
		mode    string
	}{{peerAlone, ""}, {peer, "background"}, {peerSync, "write-blocking"}} {
		if !e.wantedVariants.MatchString(string(m.variant)) {
			continue
		}
		b := &peerBed{bed: &bed{variant: m.variant, sizeBytes: o.sizeBytes}, mode: m.mode, running: &running}
		for j := range o.volumes {
			if err := b.add(ctx, filepath.Join(pair.Dir, fmt.Sprintf("qemu-%d-%d", i, j)), o.filesystem); err != nil {
				return stop, nil, fmt.Errorf("preparing %s: %w", m.variant, err)
			}
		}
		b.finish = b.mirrored
		if err := e.load(ctx, b.bed, o); err != nil {
			return stop, nil, fmt.Errorf("preparing %s: %w", m.variant, err)
		}
		beds = append(beds, b.bed)
	}
	return stop, beds, nil
}

// peerBed is a bed in the making; mode "" is without a mirror. Each of its volumes has daemons of its own.
type peerBed struct {
	*bed
	mode     string
	monitors []*qmp
	running  *[]func() error
}

func (b *peerBed) start(pids *[]int, path, name string, args ...string) (*daemon, error) {
	d, err := startDaemon(filepath.Join(path, name+".log"), args...)
	if err == nil {
		*b.running = append(*b.running, d.stop)
		*pids = append(*pids, d.cmd.Process.Pid)
	}
	return d, err
}

// mirrored waits until no mirror has anything left to copy.
func (b *peerBed) mirrored(ctx context.Context) error {
	for _, monitor := range b.monitors {
		if err := monitor.waitMirrored(ctx, settleTimeout); err != nil {
			return err
		}
	}
	return nil
}

// add starts the daemons of one volume in a new directory.
func (b *peerBed) add(ctx context.Context, dir string, filesystem bool) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	path := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"image", "copy", "export"} {
		f, err := os.Create(path(name))
		if err != nil {
			return err
		}
		if name != "export" { // that is only the file that the export is mounted on
			err = f.Truncate(b.sizeBytes)
		}
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	front := []string{"--blockdev", "driver=file,node-name=front,filename=" + path("image")}
	if b.mode != "" {
		if err := b.mirror(ctx, path); err != nil {
			return err
		}
		front = []string{"--blockdev",
			"driver=nbd,node-name=front,export=source,server.type=unix,server.path=" + path("here.sock")}
	}
	export := "type=fuse,id=export,node-name=front,writable=on,mountpoint=" + path("export")
	serving, err := b.start(&b.here, dir, "front", append(front, "--export", export, "--pidfile", path("front.pid"))...)
	if err != nil {
		return err
	}
	// Written when the options have been carried out, so the export is mounted.
	if err := serving.waitFor(ctx, "its export", exists(path("front.pid"))); err != nil {
		return err
	}
	if serving.loop, err = blockdev.AttachLoop(blockdev.LoopConfig{BackingPath: path("export"),
		SizeLimitBytes: b.sizeBytes}); err != nil {
		return err
	}
	if !filesystem {
		b.devices = append(b.devices, serving.loop)
		return nil
	}
	mount := path("mnt")
	if err := mountNew(ctx, serving.loop, mount); err != nil {
		return err
	}
	*b.running = append(*b.running, func() error { return unix.Unmount(mount, 0) })
	b.mounts = append(b.mounts, mount)
	return fillFS(mount)
}

// mirror starts the daemon that takes the copy, and the one that mirrors to it and offers the mirrored node on
// here.sock.
func (b *peerBed) mirror(ctx context.Context, path func(string) string) error {
	there, err := b.start(&b.there, path(""), "there",
		"--blockdev", "driver=file,node-name=copy,filename="+path("copy"),
		"--nbd-server", "addr.type=unix,addr.path="+path("there.sock"),
		"--export", "type=nbd,id=copy,node-name=copy,name=copy,writable=on")
	if err != nil {
		return err
	}
	if err := there.waitFor(ctx, "its NBD socket", exists(path("there.sock"))); err != nil {
		return err
	}
	here, err := b.start(&b.here, path(""), "here",
		"--chardev", "socket,id=monitor,server=on,wait=off,path="+path("qmp.sock"), "--monitor", "chardev=monitor",
		"--blockdev", "driver=file,node-name=image,filename="+path("image"),
		"--blockdev", "driver=nbd,node-name=peer,export=copy,server.type=unix,server.path="+path("there.sock"),
		"--nbd-server", "addr.type=unix,addr.path="+path("here.sock"))
	if err != nil {
		return err
	}
	monitor, err := dialQMP(ctx, here, path("qmp.sock"))
	if err != nil {
		return err
	}
	*b.running = append(*b.running, monitor.conn.Close)
	b.monitors = append(b.monitors, monitor)
	if _, err := monitor.call("blockdev-mirror", map[string]any{
		"job-id": "mirror", "device": "image", "target": "peer", "sync": "full", "copy-mode": b.mode,
		"filter-node-name": "mirrored",
	}); err != nil {
		return err
	}
	_, err = monitor.call("block-export-add", map[string]any{
		"type": "nbd", "id": "source", "node-name": "mirrored", "name": "source", "writable": true,
	})
	return err
}

func exists(path string) func() error {
	return func() error { _, err := os.Stat(path); return err }
}
