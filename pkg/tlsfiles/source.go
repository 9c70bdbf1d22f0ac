// Package tlsfiles keeps TLS configurations up to date with certificate files that change while the process runs, and
// writes such files for sites that have no certificate manager.
//
// A Source watches the directories of three PEM files: the authority's certificates, a certificate and its key. A
// change is noticed by inotify on the directory, not on the files: Kubernetes replaces a mounted secret by swapping a
// symbolic link beside the files, whose own inodes never change. Should a notification be lost, modification times are
// compared when a handshake comes, at most once a second. New files that cannot be used are logged, by name, and the
// old ones stay in force until the files are right.
//
// Open wants files that can be used. Follow is for programs that do more than to replicate, as serving volumes: it
// never fails, and while no certificate can be used, handshakes fail with the reason, which Err has too.
//
// It is not a PKI: Authority signs, and knows nothing of revocation or renewal. The files are the operating system's,
// not pkg/vfs's, since other programs write them.
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

// Source is a set of certificate files. Use Open or Follow.
type Source struct {
	caFile, certFile, keyFile string

	current atomic.Pointer[material] // nil: no files could be used yet, after Follow only
	mu      sync.Mutex               // held while files are read; order of reload
	checked atomic.Int64
	tried   [3]stamp // guarded by mu: the files as they were at the last attempt, good or bad
	// name is what the certificate has to be for; empty: anything, and its validity is for the other side to judge.
	name string
	// refused is why the files, as they were at the last attempt, are not in force; nil where they are.
	refused atomic.Pointer[refusal]

	watcher *fsnotify.Watcher // nil: only the poll of a follower looks at the files
	stop    chan struct{}
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

func newSource(ca, cert, key string) *Source {
	return &Source{caFile: ca, certFile: cert, keyFile: key, stop: make(chan struct{}), done: make(chan struct{})}
}

func (s *Source) dirs() []string {
	dirs := []string{filepath.Dir(s.caFile), filepath.Dir(s.certFile), filepath.Dir(s.keyFile)}
	slices.Sort(dirs)
	return slices.Compact(dirs)
}

// Open reads the files and watches them until Close. An error names the file that cannot be used.
func Open(ca, cert, key string) (*Source, error) {
	s := newSource(ca, cert, key)
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch certificate files: %w", err)
	}
	s.watcher = w
	// Watching comes before reading: what changes in between is read again.
	for _, dir := range s.dirs() {
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

// Close ends the watching. Configurations that were handed out go on with the files last read.
func (s *Source) Close() error {
	close(s.stop)
	var err error
	if s.watcher != nil {
		err = s.watcher.Close()
	}
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
		err = s.judge(m)
	}
	if err != nil {
		s.refused.Store(&refusal{err: err, material: m})
		return err
	}
	if old := s.current.Load(); old == nil || !slices.EqualFunc(old.cert.Certificate, m.cert.Certificate, slices.Equal) {
		klog.InfoS("Loaded certificate", "file", s.certFile, "names", m.cert.Leaf.DNSNames, "notAfter", m.cert.Leaf.NotAfter)
	}
	s.current.Store(m)
	s.refused.Store(nil) // after current: one of the two is always there
	return nil
}

func (s *Source) watch() {
	defer close(s.done)
	settle := time.NewTimer(time.Hour)
	settle.Stop()
	defer settle.Stop()
	var events chan fsnotify.Event
	var errs chan error
	if s.watcher != nil {
		events, errs = s.watcher.Events, s.watcher.Errors
	}
	var poll <-chan time.Time
	var said string
	if s.name != "" {
		ticker := time.NewTicker(pollInterval)
		defer ticker.Stop()
		poll = ticker.C
		said = s.sayIfClosed(said)
	}
	for {
		select {
		case <-s.stop:
			return
		case _, ok := <-events:
			if !ok {
				return
			}
			// Which name the event has says nothing: with a swapped link it is a name that was not watched.
			settle.Reset(settleDelay)
		case err, ok := <-errs:
			if !ok {
				return
			}
			klog.ErrorS(err, "Watching certificate files lost events; looking at the files", "file", s.certFile)
			settle.Reset(settleDelay)
		case <-settle.C:
			s.reloadIfChanged()
			said = s.sayIfClosed(said)
		case <-poll:
			s.reloadIfChanged()
			said = s.sayIfClosed(said)
		}
	}
}

func (s *Source) reloadIfChanged() {
	s.mu.Lock()
	defer s.mu.Unlock()
	changed := s.stamps() != s.tried
	if !changed && !s.overdue() {
		return
	}
	err := s.reloadLocked()
	// Without a certificate in force, sayIfClosed speaks of it.
	if m := s.current.Load(); err != nil && changed && m != nil {
		klog.ErrorS(err, "Kept the certificate in force: the new files cannot be used", "notAfter", m.cert.Leaf.NotAfter)
	}
}

// get returns the material in force, after a look at the files if the last one is a while ago. An error says why there
// is none that can be used.
func (s *Source) get() (*material, error) {
	now := time.Now().UnixNano()
	if last := s.checked.Load(); now-last > int64(statInterval) && s.checked.CompareAndSwap(last, now) {
		s.reloadIfChanged()
	}
	if err := s.Err(); err != nil {
		return nil, err
	}
	return s.current.Load(), nil
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

// NotAfter is when the certificate in force ends. Where none ever was, it is when the one in the files ends, and the
// zero time where that cannot be read.
func (s *Source) NotAfter() time.Time {
	if m := s.current.Load(); m != nil {
		return m.cert.Leaf.NotAfter
	}
	if r := s.refused.Load(); r != nil && r.material != nil {
		return r.material.cert.Leaf.NotAfter
	}
	return time.Time{}
}

// ServerConfig returns a configuration for a server that requires a client certificate of the authority.
func (s *Source) ServerConfig() *tls.Config {
	base := &tls.Config{MinVersion: tls.VersionTLS13}
	base.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		m, err := s.get()
		if err != nil {
			return nil, fmt.Errorf("this site's own certificate: %w", err)
		}
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

// ServerConfigFor is ServerConfig for a server with one kind of client: the client's certificate must be valid for
// name.
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

// ClientConfig returns a configuration for a client that shows the certificate and requires one of the authority from
// the server, valid for serverName.
func (s *Source) ClientConfig(serverName string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		ServerName: serverName,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			m, err := s.get()
			if err != nil {
				return nil, err
			}
			return m.cert, nil
		},
		// The standard verification takes its pool from the configuration, which is fixed. So it is switched off, and
		// done here with the pool in force: chain, validity, purpose and name, as crypto/tls does it.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if len(cs.PeerCertificates) == 0 {
				return errors.New("server showed no certificate")
			}
			m, err := s.get()
			if err != nil {
				return err
			}
			opts := x509.VerifyOptions{
				Roots:         m.pool,
				DNSName:       serverName,
				Intermediates: x509.NewCertPool(),
			}
			for _, c := range cs.PeerCertificates[1:] {
				opts.Intermediates.AddCert(c)
			}
			_, err = cs.PeerCertificates[0].Verify(opts)
			return err
		},
	}
}
