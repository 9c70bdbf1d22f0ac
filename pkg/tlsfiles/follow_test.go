package tlsfiles

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func follow(t *testing.T, name, dir string) *Source {
	t.Helper()
	s := FollowDir(name, dir)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// While no certificate can be used no call is made or admitted, and the reason is known; right files are taken without
// a call.
func TestFollowWithoutACertificate(t *testing.T) {
	ours := authority(t)
	peerDir := t.TempDir()
	issue(t, ours, peerDir, "site-b")
	peer := open(t, peerDir)
	for _, tc := range []struct {
		what, want string
		known      bool // when it ends
		prepare    func(dir string) error
	}{
		{"another site's", `is for ["site-x" "x.example.org"], and not for site-a`, true, func(dir string) error {
			return ours.IssueSite(dir, "site-x", []string{"x.example.org"}, day)
		}},
		{"expired", "has expired at", true, func(dir string) error {
			return ours.IssueSite(dir, "site-a", nil, time.Nanosecond)
		}},
		{"no directory", "no such file", false, func(string) error { return nil }},
		{"no files", "no such file", false, func(dir string) error { return os.Mkdir(dir, 0o755) }},
		{"malformed", "PEM", false, func(dir string) error {
			if err := ours.IssueSite(dir, "site-a", nil, day); err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(dir, CertFile), []byte("rubbish"), 0o600)
		}},
		{"key of another", "private key does not match", false, func(dir string) error {
			if err := errors.Join(ours.IssueSite(dir, "site-a", nil, day),
				ours.IssueSite(dir+"-2", "site-a", nil, day)); err != nil {
				return err
			}
			return os.Rename(filepath.Join(dir+"-2", KeyFile), filepath.Join(dir, KeyFile))
		}},
	} {
		t.Run(tc.what, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "tls")
			if err := tc.prepare(dir); err != nil {
				t.Fatal(err)
			}
			s := follow(t, "site-a", dir)
			if err := s.Err(); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
			if s.NotAfter().IsZero() == tc.known {
				t.Errorf("it ends at %v", s.NotAfter())
			}
			server, client := s.ServerConfig(), s.ClientConfig("site-b")
			if _, _, err := handshake(t, server, peer.ClientConfig("site-a")); err == nil ||
				!strings.Contains(err.Error(), tc.want) {
				t.Errorf("a peer's call: %v, want %q", err, tc.want)
			}
			if _, _, err := handshake(t, peer.ServerConfig(), client); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("calling a peer: %v, want %q", err, tc.want)
			}

			issue(t, ours, dir, "site-a")
			eventually(t, "the right files in force", func() bool { return s.Err() == nil })
			for what, err := range map[string]error{
				"a peer's call":  second(handshake(t, server, peer.ClientConfig("site-a"))),
				"calling a peer": second(handshake(t, peer.ServerConfig(), client)),
			} {
				if err != nil {
					t.Errorf("with the right files, %s: %v", what, err)
				}
			}
		})
	}
}

func second[A, B any](_ A, _ B, err error) error { return err }

// What can be used stays in force while it is valid, whatever replaces its files.
func TestFollowKeepsWhatCanBeUsed(t *testing.T) {
	ours, dir := authority(t), t.TempDir()
	issue(t, ours, dir, "site-a")
	s := follow(t, "site-a", dir)
	old := serial(s)
	for want, replace := range map[string]func() error{
		"not for site-a": func() error { return ours.IssueSite(dir, "site-b", nil, day) },
		"has expired at": func() error { return ours.IssueSite(dir, "site-a", nil, time.Nanosecond) },
	} {
		if err := replace(); err != nil {
			t.Fatal(err)
		}
		if err := s.Reload(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
		if err := s.Err(); err != nil || serial(s) != old {
			t.Errorf("in force: %v, %v", serial(s), err)
		}
	}
	// Once it runs out, both reasons are told.
	if err := ours.IssueSite(dir, "site-b", nil, day); err != nil {
		t.Fatal(err)
	}
	_ = s.Reload()
	m := *s.current.Load()
	cert, leaf := *m.cert, *m.cert.Leaf
	leaf.NotAfter = time.Now().Add(-time.Second)
	cert.Leaf, m.cert = &leaf, &cert
	s.current.Store(&m)
	if err := s.Err(); err == nil || !strings.Contains(err.Error(), "has expired at") ||
		!strings.Contains(err.Error(), "not for site-a") {
		t.Errorf("after its end: %v", err)
	}
	issue(t, ours, dir, "site-a")
	eventually(t, "the right files in force", func() bool { return s.Err() == nil })
}
