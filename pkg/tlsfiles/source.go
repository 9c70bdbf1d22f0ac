// Package tlsfiles keeps TLS configurations up to date with certificate files that change while the process runs, and
// writes such files for sites that have no certificate manager.
//
// A Source watches the directories of three PEM files: the authority's certificates, a certificate and its key. A change
// is noticed by inotify on the directory, not on the files: Kubernetes replaces a mounted secret by swapping a symbolic
// link beside the files, whose own inodes never change. Should a notification be lost, modification times are compared
// when a handshake comes, at most once a second. New files that cannot be used are logged, by name, and the old ones
// stay in force until the files are right.
//
// It is not a PKI: Authority signs, and knows nothing of revocation or renewal. The files are the operating system's, not
// pkg/vfs's, since other programs write them.
//
// # Concurrency
//
// All methods of Source are safe for concurrent use. An Authority is immutable. A configuration that was handed out
// follows the files: each handshake uses what is in force at its time; connections that are open stay open.
package tlsfiles

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fsnotify/fsnotify"
	"k8s.io/klog/v2"
)

const (
	// statInterval bounds how often handshakes look at modification times.
	statInterval = time.Second
	// settleDelay lets a writer of three files finish before they are read. Reading too early does no harm, it only
	// logs an error that the next event takes back.
	settleDelay = 50 * time.Millisecond
)

// Source is a set of certificate files. Use Open.
type Source struct {
	caFile, certFile, keyFile string

	current atomic.Pointer[material]
	mu      sync.Mutex // held while files are read; order of reload
	checked atomic.Int64
	tried   [3]stamp // guarded by mu: the files as they were at the last attempt, good or bad
	name    string   // guarded by mu: what the certificate has to be for; empty: anything

	watcher *fsnotify.Watcher
	done    chan struct{}
}

type material struct {
	pool *x509.CertPool
	cert *tls.Certificate // Leaf is set
}

// stamp changes when a file is written or a link to it swapped.
type stamp struct {
	modified time.Time
	size     int64
	inode    any
}

// Open reads the files and watches them until Close. An error names the file that cannot be used.
func Open(ca, cert, key string) (*Source, error) {
	s := &Source{caFile: ca, certFile: cert, keyFile: key, done: make(chan struct{})}
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch certificate files: %w", err)
	}
	s.watcher = w
	// Watching comes before reading: what changes in between is read again.
	dirs := []string{filepath.Dir(ca), filepath.Dir(cert), filepath.Dir(key)}
	slices.Sort(dirs)
	for _, dir := range slices.Compact(dirs) {
		if err := w.Add(dir); err != nil {
			_ = w.Close()
			return nil, fmt.Errorf("watch directory %s of certificate files: %w", dir, err)
		}
	}
	s.tried = s.stamps()
	m, err := s.read()
	if err != nil {
		_ = w.Close()
		return nil, err
	}
	s.current.Store(m)
	s.checked.Store(time.Now().UnixNano())
	go s.watch()
	return s, nil
}

// OpenDir is Open on ca.crt, tls.crt and tls.key in dir, as a Secret of Kubernetes is mounted.
func OpenDir(dir string) (*Source, error) {
	return Open(filepath.Join(dir, CAFile), filepath.Join(dir, CertFile), filepath.Join(dir, KeyFile))
}

// RequireName makes sure that the certificate in force, and each one after it, is for a name: files with another one
// count as files that cannot be used. The error says which names the certificate has. A peer finds the name in the list
// of DNS names, so a wildcard is not enough.
func (s *Source) RequireName(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.checkName(s.current.Load(), name); err != nil {
		return err
	}
	s.name = name
	return nil
}

func (s *Source) checkName(m *material, name string) error {
	if name == "" || slices.Contains(m.cert.Leaf.DNSNames, name) {
		return nil
	}
	return fmt.Errorf("certificate %s is for %q, and not for %s: give the name that it has, or issue one for %[3]s", s.certFile, m.cert.Leaf.DNSNames, name)
}

// Close ends the watching. Configurations that were handed out go on with the files last read.
func (s *Source) Close() error {
	err := s.watcher.Close()
	<-s.done
	return err
}

// Reload reads the files now. On an error the material in force stays. Callers need it only where they cannot wait for
// the notification.
func (s *Source) Reload() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reloadLocked()
}

func (s *Source) reloadLocked() error {
	// Stamps are taken before reading: a file that changes meanwhile differs from its stamp at the next look.
	s.tried = s.stamps()
	m, err := s.read()
	if err == nil {
		err = s.checkName(m, s.name)
	}
	if err != nil {
		return err
	}
	if old := s.current.Load(); old == nil || !slices.EqualFunc(old.cert.Certificate, m.cert.Certificate, slices.Equal) {
		klog.InfoS("Loaded certificate", "file", s.certFile, "names", m.cert.Leaf.DNSNames, "notAfter", m.cert.Leaf.NotAfter)
	}
	s.current.Store(m)
	return nil
}

func (s *Source) watch() {
	defer close(s.done)
	settle := time.NewTimer(time.Hour)
	settle.Stop()
	defer settle.Stop()
	for {
		select {
		case _, ok := <-s.watcher.Events:
			if !ok {
				return
			}
			// Which name the event has says nothing: with a swapped link it is one that nobody asked about.
			settle.Reset(settleDelay)
		case err, ok := <-s.watcher.Errors:
			if !ok {
				return
			}
			klog.ErrorS(err, "Watching certificate files lost events; looking at the files", "file", s.certFile)
			settle.Reset(settleDelay)
		case <-settle.C:
			s.reloadIfChanged()
		}
	}
}

func (s *Source) reloadIfChanged() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stamps() == s.tried {
		return
	}
	if err := s.reloadLocked(); err != nil {
		klog.ErrorS(err, "Kept the certificate in force: the new files cannot be used",
			"notAfter", s.current.Load().cert.Leaf.NotAfter)
	}
}

// get returns the material in force, after a look at the files if the last one is a while ago.
func (s *Source) get() *material {
	now := time.Now().UnixNano()
	if last := s.checked.Load(); now-last > int64(statInterval) && s.checked.CompareAndSwap(last, now) {
		s.reloadIfChanged()
	}
	return s.current.Load()
}

func (s *Source) stamps() (st [3]stamp) {
	for i, name := range []string{s.caFile, s.certFile, s.keyFile} {
		if info, err := os.Stat(name); err == nil {
			st[i] = stamp{info.ModTime(), info.Size(), inode(info)}
		}
	}
	return st
}

func (s *Source) read() (*material, error) {
	caPEM, err := os.ReadFile(s.caFile)
	if err != nil {
		return nil, fmt.Errorf("read authority's certificates: %w", err)
	}
	m := &material{pool: x509.NewCertPool()}
	if !m.pool.AppendCertsFromPEM(caPEM) {
		return nil, fmt.Errorf("%s holds no certificate in PEM form", s.caFile)
	}
	certPEM, err := os.ReadFile(s.certFile)
	if err != nil {
		return nil, fmt.Errorf("read certificate: %w", err)
	}
	keyPEM, err := os.ReadFile(s.keyFile)
	if err != nil {
		return nil, fmt.Errorf("read certificate's key: %w", err)
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, fmt.Errorf("certificate %s with key %s: %w", s.certFile, s.keyFile, err)
	}
	if cert.Leaf, err = x509.ParseCertificate(cert.Certificate[0]); err != nil {
		return nil, fmt.Errorf("certificate %s: %w", s.certFile, err)
	}
	m.cert = &cert
	return m, nil
}

// NotAfter is when the certificate in force ends.
func (s *Source) NotAfter() time.Time { return s.current.Load().cert.Leaf.NotAfter }

// ServerConfig returns a configuration for a server that requires a client certificate of the authority.
func (s *Source) ServerConfig() *tls.Config {
	base := &tls.Config{MinVersion: tls.VersionTLS13}
	base.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		m := s.get()
		c := base.Clone()
		c.GetConfigForClient = nil
		c.Certificates = []tls.Certificate{*m.cert}
		c.ClientAuth = tls.RequireAndVerifyClientCert
		c.ClientCAs = m.pool
		// A resumed session would skip the check against an authority that was replaced meanwhile.
		c.SessionTicketsDisabled = true
		return c, nil
	}
	// Never used while the callback is there; a server without it must not be one that takes everybody.
	base.ClientAuth = tls.RequireAndVerifyClientCert
	base.ClientCAs = x509.NewCertPool()
	return base
}

// ServerConfigFor is ServerConfig for a server with one kind of client: the client's certificate must be valid for name.
func (s *Source) ServerConfigFor(name string) *tls.Config {
	base := s.ServerConfig()
	base.VerifyConnection = func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 {
			return errors.New("client showed no certificate")
		}
		leaf := cs.PeerCertificates[0]
		if err := leaf.VerifyHostname(name); err != nil {
			return fmt.Errorf("client's certificate is for %q, and only %s is let in here", leaf.DNSNames, name)
		}
		return nil
	}
	return base
}

// ClientConfig returns a configuration for a client that shows the certificate and requires one of the authority from the
// server, valid for serverName.
func (s *Source) ClientConfig(serverName string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		ServerName: serverName,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return s.get().cert, nil
		},
		// The standard verification takes its pool from the configuration, which is fixed. So it is switched off, and
		// done here with the pool in force: chain, validity, purpose and name, as crypto/tls does it.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 {
				return errors.New("server showed no certificate")
			}
			opts := x509.VerifyOptions{
				Roots:         s.get().pool,
				DNSName:       serverName,
				Intermediates: x509.NewCertPool(),
			}
			for _, c := range cs.PeerCertificates[1:] {
				opts.Intermediates.AddCert(c)
			}
			_, err := cs.PeerCertificates[0].Verify(opts)
			return err
		},
	}
}
