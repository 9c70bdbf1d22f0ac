package tlsfiles

import (
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"
	"k8s.io/klog/v2"
)

// pollInterval is how often a follower looks at the files itself: a directory that is not there yet cannot be watched.
const pollInterval = time.Second

// refusal is why files are not in force.
type refusal struct {
	err      error
	material *material // what was read; nil where that failed
}

// Follow is Open for a program that goes on without a certificate: files that are missing, malformed, for another name
// than name, or not valid now are no error. Until they are replaced by files that can be used, handshakes fail with the
// reason, which is in the log and in Err. Files that can be used stay in force while they are valid, whatever replaces
// them.
//
// A peer finds name in the certificate's list of DNS names, so a wildcard is not enough.
func Follow(name, ca, cert, key string) *Source {
	s := newSource(ca, cert, key)
	s.name = name
	if w, err := fsnotify.NewWatcher(); err != nil {
		klog.ErrorS(err, "Looking at certificate files from time to time: they cannot be watched", "file", cert)
	} else {
		s.watcher = w
		for _, dir := range s.dirs() {
			_ = w.Add(dir) // the poll finds what is put there later
		}
	}
	_ = s.Reload() // the watch says it
	s.checked.Store(time.Now().UnixNano())
	go s.watch()
	return s
}

// FollowDir is Follow on ca.crt, tls.crt and tls.key in dir.
func FollowDir(name, dir string) *Source {
	return Follow(name, filepath.Join(dir, CAFile), filepath.Join(dir, CertFile), filepath.Join(dir, KeyFile))
}

// Err says why no handshake can succeed now for lack of a certificate; nil after Open. It does not wait for the files.
func (s *Source) Err() error {
	r := s.refused.Load() // before current: one of the two is always there
	m := s.current.Load()
	if m == nil {
		return r.err
	}
	err := s.checkTime(m)
	if err != nil && r != nil {
		err = fmt.Errorf("%w; the files that are to replace it cannot be used: %w", err, r.err)
	}
	return err
}

// judge says why files are not to be put in force. Those whose only fault is the time are, unless they would replace
// better ones.
func (s *Source) judge(m *material) error {
	if s.name == "" {
		return nil
	}
	if names := m.cert.Leaf.DNSNames; !slices.Contains(names, s.name) {
		return fmt.Errorf("certificate %s is for %q, and not for %s: give the name that it has, or issue one for %[3]s",
			s.certFile, names, s.name)
	}
	if old := s.current.Load(); old != nil && s.checkTime(old) == nil {
		return s.checkTime(m)
	}
	return nil
}

// checkTime asks for files of a follower only. Others leave it to the other side, whose clock counts in the end.
func (s *Source) checkTime(m *material) error {
	leaf, now := m.cert.Leaf, time.Now()
	switch {
	case s.name == "":
		return nil
	case now.After(leaf.NotAfter):
		return fmt.Errorf("certificate %s has expired at %s: renew it", s.certFile, leaf.NotAfter.UTC().Format(time.RFC3339))
	case now.Before(leaf.NotBefore):
		return fmt.Errorf("certificate %s is valid from %s: look at this machine's clock", s.certFile,
			leaf.NotBefore.UTC().Format(time.RFC3339))
	}
	return nil
}

// overdue tells whether files that were refused are worth another look, although they did not change: what is in force
// has run out.
func (s *Source) overdue() bool {
	m := s.current.Load()
	return m != nil && s.refused.Load() != nil && s.checkTime(m) != nil
}

// sayIfClosed logs that the certificate cannot be used, and that it can again, each once. It takes and returns what it
// said last.
func (s *Source) sayIfClosed(said string) string {
	if s.name == "" {
		return ""
	}
	err := s.Err()
	switch {
	case err == nil && said != "":
		klog.InfoS("The certificate can be used", "site", s.name, "file", s.certFile, "notAfter", s.NotAfter())
	case err != nil && err.Error() != said:
		klog.ErrorS(err, "No peer is called or let in until the certificate files are right", "site", s.name, "file",
			s.certFile)
	}
	if err == nil {
		return ""
	}
	return err.Error()
}
