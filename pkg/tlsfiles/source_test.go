package tlsfiles

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const day = 24 * time.Hour

func authority(t *testing.T) *Authority {
	t.Helper()
	a, err := NewAuthority(t.TempDir(), "test authority")
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func issue(t *testing.T, a *Authority, dir, site string, hosts ...string) {
	t.Helper()
	if err := a.IssueSite(dir, site, hosts, day); err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, dir string) *Source {
	t.Helper()
	s, err := Open(filepath.Join(dir, CAFile), filepath.Join(dir, CertFile), filepath.Join(dir, KeyFile))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// handshake connects the two and returns the certificates each saw of the other, or the error of either side.
func handshake(t *testing.T, server, client *tls.Config) (atServer, atClient *x509.Certificate, err error) {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	s, c := tls.Server(a, server), tls.Client(b, client)
	result := make(chan error, 1)
	go func() {
		err := s.HandshakeContext(ctx)
		if err == nil {
			_, err = s.Write([]byte{1})
		}
		if err != nil {
			_ = a.Close()
		}
		result <- err
	}()
	cerr := c.HandshakeContext(ctx)
	if cerr == nil {
		// With TLS 1.3 a client learns only now that its certificate was refused.
		_, cerr = c.Read(make([]byte, 1))
	}
	if cerr != nil {
		_ = b.Close()
	}
	if err := errors.Join(<-result, cerr); err != nil {
		return nil, nil, err
	}
	return s.ConnectionState().PeerCertificates[0], c.ConnectionState().PeerCertificates[0], nil
}

func TestHandshake(t *testing.T) {
	ours, theirs := authority(t), authority(t)
	dirA, dirB, dirX := t.TempDir(), t.TempDir(), t.TempDir()
	issue(t, ours, dirA, "site-a")
	issue(t, ours, dirB, "site-b", "b.example.org", "127.0.0.1")
	issue(t, theirs, dirX, "site-a")
	a, b, x := open(t, dirA), open(t, dirB), open(t, dirX)

	for _, tc := range []struct {
		name           string
		server, client *tls.Config
		fails          string
	}{
		{"by site name", b.ServerConfig(), a.ClientConfig("site-b"), ""},
		{"by host", b.ServerConfig(), a.ClientConfig("b.example.org"), ""},
		{"by address", b.ServerConfig(), a.ClientConfig("127.0.0.1"), ""},
		{"another name", b.ServerConfig(), a.ClientConfig("site-c"), "site-c"},
		{"client of another authority", b.ServerConfig(), x.ClientConfig("site-b"), "unknown authority"},
		{"server of another authority", x.ServerConfig(), a.ClientConfig("site-a"), "unknown authority"},
		{"client without certificate", b.ServerConfig(), &tls.Config{InsecureSkipVerify: true}, "certificate"},
		{"old protocol", b.ServerConfig(), func() *tls.Config {
			c := a.ClientConfig("site-b")
			c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
			return c
		}(), "version"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			atServer, atClient, err := handshake(t, tc.server, tc.client)
			if tc.fails != "" {
				if err == nil || !strings.Contains(err.Error(), tc.fails) {
					t.Fatalf("error %v, want one about %q", err, tc.fails)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if atServer.DNSNames[0] != "site-a" || atClient.DNSNames[0] != "site-b" {
				t.Errorf("names %q and %q", atServer.DNSNames, atClient.DNSNames)
			}
		})
	}
}

// eventually waits for what the watcher does asynchronously.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

// serial is what the source has in force, without the look at the files that a handshake takes.
func serial(s *Source) string { return s.current.Load().cert.Leaf.SerialNumber.String() }

func TestReloadOnNotification(t *testing.T) {
	auth, dir := authority(t), t.TempDir()
	issue(t, auth, dir, "site-a")
	s := open(t, dir)
	server, old := s.ServerConfig(), serial(s)

	issue(t, auth, dir, "site-a")
	eventually(t, "the new certificate in force", func() bool { return serial(s) != old })

	_, atClient, err := handshake(t, server, s.ClientConfig("site-a"))
	if err != nil || atClient.SerialNumber.String() == old {
		t.Fatalf("a configuration from before the change: serial %v, error %v", atClient, err)
	}

	// A new authority: who was trusted is not any more.
	other := authority(t)
	client := s.ClientConfig("site-a")
	oldDir := t.TempDir()
	issue(t, auth, oldDir, "site-b")
	stranger := open(t, oldDir)
	issue(t, other, dir, "site-a")
	eventually(t, "the old authority refused", func() bool {
		_, _, err := handshake(t, server, stranger.ClientConfig("site-a"))
		return err != nil
	})
	if _, _, err := handshake(t, server, client); err != nil {
		t.Errorf("old configurations with the new authority: %v", err)
	}
}

// A volume of Kubernetes: <dir>/tls.crt -> ..data/tls.crt, ..data -> ..version; an update swaps ..data.
func TestReloadOnSymlinkSwap(t *testing.T) {
	auth, dir := authority(t), t.TempDir()
	swap := func(version string) {
		issue(t, auth, filepath.Join(dir, version), "site-a")
		tmp := filepath.Join(dir, "..data_tmp")
		if err := errors.Join(os.Symlink(version, tmp), os.Rename(tmp, filepath.Join(dir, "..data"))); err != nil {
			t.Fatal(err)
		}
	}
	swap("..1")
	for _, f := range []string{CAFile, CertFile, KeyFile} {
		if err := os.Symlink(filepath.Join("..data", f), filepath.Join(dir, f)); err != nil {
			t.Fatal(err)
		}
	}
	s := open(t, dir)
	old := serial(s)
	swap("..2")
	eventually(t, "the new certificate in force", func() bool { return serial(s) != old })
}

func TestReloadWithoutNotification(t *testing.T) {
	auth, dir := authority(t), t.TempDir()
	issue(t, auth, dir, "site-a")
	s := open(t, dir)
	if err := s.watcher.Close(); err != nil {
		t.Fatal(err)
	}
	<-s.done
	old := serial(s)
	issue(t, auth, dir, "site-a")
	if serial(s) != old {
		t.Fatal("something still watches")
	}
	s.checked.Store(0) // the last look was long ago
	if _, _, err := handshake(t, s.ServerConfig(), s.ClientConfig("site-a")); err != nil {
		t.Fatal(err)
	}
	if serial(s) == old {
		t.Error("a handshake did not look at the files")
	}
}

func TestBadFilesKeepTheOldOnes(t *testing.T) {
	auth := authority(t)
	for _, file := range []string{CAFile, CertFile, KeyFile} {
		t.Run(file, func(t *testing.T) {
			dir := t.TempDir()
			issue(t, auth, dir, "site-a")
			s := open(t, dir)
			path := filepath.Join(dir, file)
			for name, spoil := range map[string]func() error{
				"rubbish": func() error { return os.WriteFile(path, []byte("rubbish"), 0o600) },
				"missing": func() error { return os.Remove(path) },
			} {
				issue(t, auth, dir, "site-a")
				if err := s.Reload(); err != nil {
					t.Fatal(err)
				}
				if err := spoil(); err != nil {
					t.Fatal(err)
				}
				if err := s.Reload(); err == nil || !strings.Contains(err.Error(), path) {
					t.Errorf("%s: error %v does not name %s", name, err, path)
				}
				if _, _, err := handshake(t, s.ServerConfig(), s.ClientConfig("site-a")); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				if _, err := Open(filepath.Join(dir, CAFile), filepath.Join(dir, CertFile),
					filepath.Join(dir, KeyFile)); err == nil ||
					!strings.Contains(err.Error(), path) {
					t.Errorf("%s: Open: error %v does not name %s", name, err, path)
				}
			}
			// Once the files are right again, they are taken without a call.
			old := serial(s)
			issue(t, auth, dir, "site-a")
			eventually(t, "the repaired files in force", func() bool { return serial(s) != old })
		})
	}
}

func TestKeyOfAnotherCertificate(t *testing.T) {
	auth, dir, other := authority(t), t.TempDir(), t.TempDir()
	issue(t, auth, dir, "site-a")
	issue(t, auth, other, "site-a")
	key := filepath.Join(other, KeyFile)
	if _, err := Open(filepath.Join(dir, CAFile), filepath.Join(dir, CertFile), key); err == nil ||
		!strings.Contains(err.Error(), key) {
		t.Errorf("error %v does not name %s", err, key)
	}
}
