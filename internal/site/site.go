// Package site is a site's directory: what is in it, how it comes into being, and the command lines of the three
// processes that serve it.
//
//	<dir>/pool            the pool
//	<dir>/shim            mount points of the shim, one per attached replicable volume
//	<dir>/state           remembers that there is a pool, should the pool be a disk that is not mounted
//	<dir>/run             Unix sockets: csi.sock, replicator.sock, keeper.sock
//	<dir>/tls             ca.crt, tls.crt, tls.key
//	<dir>/authority       ca.crt, ca.key; only where the authority was made here
//
// It starts nothing. A Config is a value; its methods may be called from anywhere.
package site

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/tlsfiles"
)

// Peer is another site and where its replicator listens.
type Peer struct{ Name, Addr string }

// ParsePeer reads name=host:port.
func ParsePeer(s string) (Peer, error) {
	name, addr, ok := strings.Cut(s, "=")
	if !ok || name == "" || addr == "" {
		return Peer{}, fmt.Errorf("peer %q: it is written as name=host:port", s)
	}
	return Peer{name, addr}, nil
}

// Config describes a site.
type Config struct {
	// Dir is absolute.
	Dir  string
	Name string
	// NodeID is the node that the driver serves, Kubernetes' node name in a cluster.
	NodeID string
	// Listen is host:port for peers.
	Listen string
	Peers  []Peer
	// ReplicatorMetrics and DriverMetrics are host:port, or empty for no metrics.
	ReplicatorMetrics, DriverMetrics string
	// StatusListen is host:port of the status page, or empty for none.
	StatusListen string
	// Compression is that of the link, none or zstd; empty for the replicator's default.
	Compression string
	// JournalDir is where groups and journals are; empty: in the pool.
	JournalDir string
}

// PoolDir is the pool.
func (c Config) PoolDir() string { return filepath.Join(c.Dir, "pool") }

// ShimDir has the mount points of the shim.
func (c Config) ShimDir() string { return filepath.Join(c.Dir, "shim") }

// TLSDir has the certificates.
func (c Config) TLSDir() string { return filepath.Join(c.Dir, "tls") }

// AuthorityDir is where an authority is made when none is given.
func (c Config) AuthorityDir() string { return filepath.Join(c.Dir, "authority") }

// stateArgs is where driver and replicator remember the pool.
func (c Config) stateArgs() []string { return []string{"--state-dir", filepath.Join(c.Dir, "state")} }

func (c Config) socket(name string) string { return filepath.Join(c.Dir, "run", name+".sock") }

// CSIEndpoint is where the driver listens.
func (c Config) CSIEndpoint() string { return "unix://" + c.socket("csi") }

// SidecarEndpoint is where the replicator listens for this node.
func (c Config) SidecarEndpoint() string { return "unix://" + c.socket("replicator") }

// KeeperSocket is where the keeper listens.
func (c Config) KeeperSocket() string { return c.socket("keeper") }

// KeeperArgs is the command line of this site's keeper, without the program.
func (c Config) KeeperArgs() []string { return []string{"--socket", c.KeeperSocket()} }

// ReplicatorArgs is the command line of this site's replicator, without the program.
func (c Config) ReplicatorArgs() []string {
	args := []string{
		"--endpoint", c.SidecarEndpoint(), "--site", c.Name, "--pool", c.PoolDir(),
		"--shim-dir", c.ShimDir(), "--keeper-socket", c.KeeperSocket(),
		"--listen", c.Listen,
		"--tls-ca", filepath.Join(c.TLSDir(), tlsfiles.CAFile),
		"--tls-cert", filepath.Join(c.TLSDir(), tlsfiles.CertFile),
		"--tls-key", filepath.Join(c.TLSDir(), tlsfiles.KeyFile),
	}
	for _, p := range c.Peers {
		args = append(args, "--peer", p.Name+"="+p.Addr)
	}
	if c.ReplicatorMetrics != "" {
		args = append(args, "--metrics-addr", c.ReplicatorMetrics)
	}
	if c.StatusListen != "" {
		args = append(args, "--status-listen", c.StatusListen)
	}
	if c.Compression != "" {
		args = append(args, "--compression", c.Compression)
	}
	return append(append(args, c.stateArgs()...), c.journalArgs()...)
}

// DriverArgs is the command line of this site's CSI driver, without the program.
func (c Config) DriverArgs() []string {
	args := []string{
		"--endpoint", c.CSIEndpoint(), "--node-id", c.NodeID, "--pool", c.PoolDir(),
		"--sidecar", c.SidecarEndpoint(), "--shim-dir", c.ShimDir(), "--keeper-socket", c.KeeperSocket(),
	}
	if c.DriverMetrics != "" {
		args = append(args, "--metrics-addr", c.DriverMetrics)
	}
	return append(append(args, c.stateArgs()...), c.journalArgs()...)
}

func (c Config) journalArgs() []string {
	if c.JournalDir == "" {
		return nil
	}
	return []string{"--journal-dir", c.JournalDir}
}

const (
	// certificateValidity is how long a site's certificate is good for; init with renewal writes a new one, which the
	// replicator takes up by itself.
	certificateValidity = 2 * 365 * 24 * time.Hour
	// maxSocketPath is the kernel's: sun_path has 108 bytes with its end.
	maxSocketPath = 107
)

// InitOptions say where certificates come from.
type InitOptions struct {
	// AuthorityDir has an authority that other sites use too, or will have: it is made when it is not there. Empty for
	// one of the site's own.
	AuthorityDir string
	// Hosts are further names and addresses for the certificate.
	Hosts []string
	// Renew replaces a certificate that is there.
	Renew bool
}

// Init creates the directories and the certificates that are missing. It can be repeated; what is there stays, but for
// the certificate with Renew. A directory of another site, or a certificate of another authority that is not to be
// renewed, is an error, and nothing is changed.
func Init(c Config, o InitOptions) error {
	if !filepath.IsAbs(c.Dir) {
		return fmt.Errorf(
			"site directory %q: it has to be an absolute path, because its processes are started anywhere", c.Dir)
	}
	if n := len(c.socket("replicator")); n > maxSocketPath {
		return fmt.Errorf(
			"site directory %s: the path of a socket in it would have %s, more than the %d a Unix socket can "+
				"have: choose a shorter one",
			c.Dir, words.Count(n, "byte"), maxSocketPath)
	}
	if err := c.checkExisting(o); err != nil {
		return err
	}
	for _, dir := range []string{c.Dir, c.PoolDir(), c.ShimDir(), c.TLSDir(), filepath.Dir(c.socket("csi"))} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("site %s: %w", c.Name, err)
		}
	}
	_, err := os.Stat(filepath.Join(c.TLSDir(), tlsfiles.CertFile))
	if err == nil && !o.Renew {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("site %s: %w", c.Name, err)
	}
	dir := o.AuthorityDir
	if dir == "" {
		dir = c.AuthorityDir()
	}
	authority, err := tlsfiles.NewAuthority(dir, "Slipstream sites")
	if errors.Is(err, fs.ErrExist) {
		authority, err = tlsfiles.OpenAuthority(dir)
	}
	if err != nil {
		return fmt.Errorf("site %s: %w", c.Name, err)
	}
	return authority.IssueSite(c.TLSDir(), c.Name, o.Hosts, certificateValidity)
}

// checkExisting compares what is in the directory with what is asked for.
func (c Config) checkExisting(o InitOptions) error {
	path := filepath.Join(c.TLSDir(), tlsfiles.CertFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("site %s: %w", c.Name, err)
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return fmt.Errorf("site %s: %s is no certificate: remove it, then repeat the command", c.Name, path)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return fmt.Errorf("site %s: %s: %w", c.Name, path, err)
	}
	if cert.VerifyHostname(c.Name) != nil {
		return fmt.Errorf("site %s: directory %s is that of site %s: choose another directory", c.Name, c.Dir,
			strings.Join(cert.DNSNames, ", "))
	}
	if o.Renew || o.AuthorityDir == "" {
		return nil
	}
	given, err := os.ReadFile(filepath.Join(o.AuthorityDir, tlsfiles.CAFile))
	if err != nil {
		return fmt.Errorf("site %s has a certificate already, and its authority cannot be compared: %w; name the authority "+
			"that signed it, or repeat with --renew", c.Name, err)
	}
	own, err := os.ReadFile(filepath.Join(c.TLSDir(), tlsfiles.CAFile))
	if err != nil {
		return fmt.Errorf("site %s: %w", c.Name, err)
	}
	if !bytes.Equal(given, own) {
		return fmt.Errorf("site %s: its certificate in %s is of another authority than %s: repeat with --renew to replace it",
			c.Name, c.TLSDir(), o.AuthorityDir)
	}
	return nil
}
