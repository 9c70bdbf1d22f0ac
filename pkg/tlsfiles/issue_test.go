package tlsfiles

import (
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestAuthorityFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	a, err := NewAuthority(dir, "first")
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(filepath.Join(dir, CAKeyFile)); err != nil || st.Mode() != 0o600 {
		t.Errorf("key: %v %v", st.Mode(), err)
	}
	if _, err := NewAuthority(dir, "second"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second authority in its place: error %v", err)
	}
	again, err := OpenAuthority(dir)
	if err != nil {
		t.Fatal(err)
	}
	if !again.cert.Equal(a.cert) {
		t.Error("the authority that was opened is not the one that was made")
	}

	// Certificates of both are of one authority.
	dirA, dirB := t.TempDir(), t.TempDir()
	issue(t, a, dirA, "site-a")
	issue(t, again, dirB, "site-b")
	if _, _, err := handshake(t, open(t, dirA).ServerConfig(), open(t, dirB).ClientConfig("site-a")); err != nil {
		t.Error(err)
	}
	if st, err := os.Stat(filepath.Join(dirA, KeyFile)); err != nil || st.Mode() != 0o600 {
		t.Errorf("site's key: %v %v", st.Mode(), err)
	}
	if names, err := filepath.Glob(filepath.Join(dirA, ".*")); err != nil || len(names) != 0 {
		t.Errorf("left behind: %q %v", names, err)
	}

	// A site's certificate is not an authority.
	for from, to := range map[string]string{CertFile: CAFile, KeyFile: CAKeyFile} {
		b, err := os.ReadFile(filepath.Join(dirA, from))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dirA, to), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := OpenAuthority(dirA); err == nil {
		t.Error("a site's certificate was taken for an authority's")
	}
}

func TestSiteValidity(t *testing.T) {
	a, dir := authority(t), t.TempDir()
	leaf := func(validFor time.Duration) *x509.Certificate {
		if err := a.IssueSite(dir, "site-a", nil, validFor); err != nil {
			t.Fatal(err)
		}
		return open(t, dir).current.Load().cert.Leaf
	}
	if c := leaf(2 * authorityValidity); !c.NotAfter.Equal(a.cert.NotAfter) {
		t.Errorf("valid until %v, the authority until %v", c.NotAfter, a.cert.NotAfter)
	}
	if c := leaf(day); c.NotAfter.After(time.Now().Add(day)) || c.NotAfter.Before(time.Now().Add(day-time.Hour)) {
		t.Errorf("valid until %v, want a day", c.NotAfter)
	}
	if err := a.IssueSite(dir, "site-a", nil, 0); err == nil {
		t.Error("a certificate that is valid for no time")
	}
}

func TestSiteNames(t *testing.T) {
	a, dir := authority(t), t.TempDir()
	for _, good := range []string{"a", "site-b", "eu.west-1"} {
		if err := a.IssueSite(dir, good, nil, day); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{"", "*", "*.example", "Site", "a b", ".a", "a.", "-a", "10.0.0.1", "::1", "a/../b", "ä"} {
		if err := a.IssueSite(dir, bad, nil, day); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}
