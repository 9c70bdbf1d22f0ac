package site

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/tlsfiles"
)

func TestSecrets(t *testing.T) {
	s := Secrets{Dir: t.TempDir(), Sites: []string{"site-a", "site-b"}, Namespace: "storage", Name: "slip"}
	manifests, err := s.Write()
	if err != nil {
		t.Fatal(err)
	}
	first, err := os.ReadFile(manifests[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"name: slip-link-tls", "name: slip-node-tls", "name: slip-controller-tls",
		"namespace: storage", "  ca.crt: LS0", "  tls.key: LS0"} {
		if !bytes.Contains(first, []byte(want)) {
			t.Errorf("%s lacks %q:\n%s", manifests[0], want, first)
		}
	}
	if info, err := os.Stat(manifests[0]); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	open := func(site, use string) *tlsfiles.Source {
		t.Helper()
		source, err := tlsfiles.OpenDir(filepath.Join(s.Dir, site, use))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { source.Close() })
		return source
	}
	for what, tc := range map[string]struct {
		server, client *tls.Config
		fails          string
	}{
		"link": {open("site-b", "link").ServerConfig(),
			open("site-a", "link").ClientConfig("site-b"), ""},
		"controller": {open("site-a", "node").ServerConfigFor(tlsfiles.ControllerName),
			open("site-a", "controller").ClientConfig(tlsfiles.NodeName), ""},
		"the other site's controller": {open("site-a", "node").ServerConfigFor(tlsfiles.ControllerName),
			open("site-b", "controller").ClientConfig(tlsfiles.NodeName), "authority"},
		"a node as controller": {open("site-a", "node").ServerConfigFor(tlsfiles.ControllerName),
			open("site-a", "node").ClientConfig(tlsfiles.NodeName), "only controller.csi.slipstream.dev"},
		"a peer as controller": {open("site-a", "node").ServerConfigFor(tlsfiles.ControllerName),
			open("site-a", "link").ClientConfig(tlsfiles.NodeName), "authority"},
	} {
		err := handshake(t, tc.server, tc.client)
		if tc.fails == "" && err != nil || tc.fails != "" && (err == nil || !strings.Contains(err.Error(), tc.fails)) {
			t.Errorf("%s: error %v, want %q", what, err, tc.fails)
		}
	}

	// Again nothing changes; with a further site neither; with Renew the certificates do, and the authorities do not.
	s.Sites = append(s.Sites, "site-c")
	again, err := s.Write()
	if err != nil {
		t.Fatal(err)
	}
	if text, _ := os.ReadFile(again[0]); len(again) != 3 || !bytes.Equal(text, first) {
		t.Error("a repetition changed the certificates")
	}
	old := open("site-b", "link")
	s.Renew = true
	if _, err := s.Write(); err != nil {
		t.Fatal(err)
	}
	if text, _ := os.ReadFile(again[0]); bytes.Equal(text, first) {
		t.Error("nothing was renewed")
	}
	if err := handshake(t, open("site-c", "link").ServerConfig(), old.ClientConfig("site-c")); err != nil {
		t.Errorf("an older certificate of the same authority: %v", err)
	}
	if _, err := (Secrets{Dir: t.TempDir(), Sites: []string{"Not A Name"}, Namespace: "x",
		Name: "y"}).Write(); err == nil {
		t.Error("a name that no certificate can have was taken")
	}
}

// handshake returns the errors of both sides: the one that refuses knows why.
func handshake(t *testing.T, server, client *tls.Config) error {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	result := make(chan error, 1)
	go func() {
		defer a.Close()
		result <- tls.Server(a, server).HandshakeContext(ctx)
	}()
	cerr := tls.Client(b, client).HandshakeContext(ctx)
	if cerr != nil {
		b.Close()
	} else {
		go func() { _, _ = b.Read(make([]byte, 64)) }() // takes the alert
	}
	return errors.Join(<-result, cerr)
}
