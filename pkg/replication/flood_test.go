package replication

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/blockdev"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
	"github.com/slipstream-storage/slipstream/pkg/tlsfiles"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

const (
	// floodDir tells a test process that it is the one that is flooded, and where its files are.
	floodDir = "SLIPSTREAM_TEST_FLOOD_DIR"
	// floodLimit is how many descriptors it has, and floodConnections how many connections without a certificate it gets.
	floodLimit       = 256
	floodConnections = 1500
)

// Connections without a certificate are far more than the process has descriptors. The primary goes on to write, to
// make segments and groups, and its peer gets in.
func TestFloodOfHalfOpenConnections(t *testing.T) {
	if dir := os.Getenv(floodDir); dir != "" {
		if err := beFlooded(dir); err != nil {
			t.Fatal(err)
		}
		return
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || limit.Cur < 2*floodConnections {
		t.Skipf("a flood of %d connections needs more descriptors than %d, %v", floodConnections, limit.Cur, err)
	}
	dir := t.TempDir()
	authority, err := tlsfiles.NewAuthority(filepath.Join(dir, "authority"), "test")
	if err != nil {
		t.Fatal(err)
	}
	for _, site := range []string{"site-a", "site-b"} {
		if err := authority.IssueSite(filepath.Join(dir, site), site, nil, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^"+t.Name()+"$", "-test.v", "-test.timeout", "120s")
	cmd.Env = append(os.Environ(), floodDir+"="+dir)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill() }()
	var log strings.Builder
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		log.WriteString(lines.Text() + "\n")
		address, listens := strings.CutPrefix(lines.Text(), "listening ")
		if !listens {
			continue
		}
		// From an address that is not the peer's.
		dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
		for i := range floodConnections {
			conn, err := dialer.DialContext(t.Context(), "tcp", address)
			if err != nil {
				t.Fatalf("connection %d: %v", i, err)
			}
			defer conn.Close()
		}
		if _, err := in.Write([]byte("flooded\n")); err != nil {
			t.Fatal(err)
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("the flooded process ended with %v:\n%s", err, log.String())
	}
}

// beFlooded is a primary with few descriptors. It writes once the flood is there.
func beFlooded(dir string) (err error) {
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: floodLimit, Max: floodLimit}); err != nil {
		return err
	}
	pool, err := blockdev.OpenPool(vfs.OS, filepath.Join(dir, "pool"), blockdev.WhoReplicator)
	if err != nil {
		return err
	}
	defer pool.Close()
	site, err := Open(Config{FS: vfs.OS, Pool: pool, Site: "site-a", ApplyInterval: 10 * time.Millisecond})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, site.Close()) }()
	certificate, err := tlsfiles.OpenDir(filepath.Join(dir, "site-a"))
	if err != nil {
		return err
	}
	defer certificate.Close()
	server, err := link.NewServer(link.ServerOptions{Site: "site-a", TLS: certificate, Handler: site,
		Peers: func() []string { return []string{"site-b"} }})
	if err != nil {
		return err
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	go func() { _ = server.Serve(lis) }()
	defer server.Stop()
	if err := writeSegments(site, "before"); err != nil {
		return err
	}
	fmt.Println("listening", lis.Addr())
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return err
	}
	// Connections are accepted in order: when the peer is in, the flood was accepted before.
	peer := callAsPeer(dir, lis.Addr().String())
	// Another group, too: its files are opened now.
	return errors.Join(peer, writeSegments(site, "before"), writeSegments(site, "after"))
}

// callAsPeer opens a stream as the site's peer.
func callAsPeer(dir, address string) error {
	theirs, err := tlsfiles.OpenDir(filepath.Join(dir, "site-b"))
	if err != nil {
		return err
	}
	defer theirs.Close()
	client, err := link.NewClient(link.ClientOptions{Site: "site-b", TLS: theirs})
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	stream, err := client.Dial(ctx, "site-a", address)
	if err != nil {
		return err
	}
	return stream.Close()
}

// writeSegments writes twice a group's journal, each write with its flush.
func writeSegments(site *Site, name string) error {
	const bytes = 1 << 20
	g, err := site.CreateGroup(GroupSpec{Name: name, Settings: core.Settings{JournalSizeBytes: MinJournalBytes}})
	if err != nil {
		return err
	}
	v, err := g.Volume(name)
	if errors.Is(err, ErrNotFound) {
		var rec *blockdev.VolumeRecord
		rec, err = site.cfg.Pool.Create(blockdev.VolumeRecord{ID: name, Name: name, SizeBytes: bytes, Replicable: true,
			Order: blockdev.OrderFlush})
		if err == nil {
			err = g.AddVolume(rec, nil)
		}
		if err == nil {
			v, err = g.Attach(name)
		}
	}
	if err != nil {
		return err
	}
	data := block(1, 64<<10)
	for written := int64(0); written < 2*MinJournalBytes; written += int64(len(data)) {
		if _, err := v.WriteAt(data, written%bytes); err != nil {
			return fmt.Errorf("after %d bytes: %w", written, err)
		}
		if err := v.Flush(); err != nil {
			return fmt.Errorf("after %d bytes: %w", written, err)
		}
	}
	return nil
}
