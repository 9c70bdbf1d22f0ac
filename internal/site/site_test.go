package site

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/slipstream-storage/slipstream/pkg/tlsfiles"
)

func TestCommandLines(t *testing.T) {
	c := Config{
		Dir: "/s", Name: "site-a", NodeID: "n1", Listen: "127.0.0.1:1",
		Peers: []Peer{{"site-b", "127.0.0.1:2"}}, ReplicatorMetrics: "127.0.0.1:3", Compression: "zstd", JournalDir: "/j",
		StatusListen: "127.0.0.1:4",
	}
	if diff := cmp.Diff(
		strings.Fields(`--endpoint unix:///s/run/replicator.sock --site site-a --pool /s/pool --shim-dir /s/shim
		--keeper-socket /s/run/keeper.sock --listen 127.0.0.1:1 --tls-ca /s/tls/ca.crt --tls-cert /s/tls/tls.crt
		--tls-key /s/tls/tls.key --peer site-b=127.0.0.1:2 --metrics-addr 127.0.0.1:3 --status-listen 127.0.0.1:4
		--compression zstd
		--state-dir /s/state --journal-dir /j`), c.ReplicatorArgs()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(strings.Fields(`--endpoint unix:///s/run/csi.sock --node-id n1 --pool /s/pool
		--sidecar unix:///s/run/replicator.sock --shim-dir /s/shim --keeper-socket /s/run/keeper.sock
		--state-dir /s/state --journal-dir /j`), c.DriverArgs()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(strings.Fields("--socket /s/run/keeper.sock"), c.KeeperArgs()); diff != "" {
		t.Error(diff)
	}
}

func TestParsePeer(t *testing.T) {
	if got, err := ParsePeer("b=host:1"); err != nil || got != (Peer{"b", "host:1"}) {
		t.Errorf("got %v, %v", got, err)
	}
	for _, bad := range []string{"", "b", "b=", "=host:1"} {
		if _, err := ParsePeer(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestInit(t *testing.T) {
	authority := filepath.Join(t.TempDir(), "authority")
	a := Config{Dir: filepath.Join(t.TempDir(), "a"), Name: "site-a"}
	b := Config{Dir: filepath.Join(t.TempDir(), "b"), Name: "site-b"}
	read := func(c Config, file string) string {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(c.TLSDir(), file))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	for _, c := range []Config{a, b} {
		if err := Init(c, InitOptions{AuthorityDir: authority}); err != nil {
			t.Fatal(err)
		}
	}
	if read(a, tlsfiles.CAFile) != read(b, tlsfiles.CAFile) {
		t.Error("the two sites do not share the authority")
	}
	before := read(a, tlsfiles.CertFile)
	if err := Init(a, InitOptions{AuthorityDir: authority}); err != nil {
		t.Fatal(err)
	}
	if read(a, tlsfiles.CertFile) != before {
		t.Error("a repeated init replaced the certificate")
	}
	if err := Init(a, InitOptions{AuthorityDir: authority, Renew: true}); err != nil {
		t.Fatal(err)
	}
	if read(a, tlsfiles.CertFile) == before {
		t.Error("renewal kept the certificate")
	}
	other := filepath.Join(t.TempDir(), "other")
	if _, err := tlsfiles.NewAuthority(other, "another"); err != nil {
		t.Fatal(err)
	}
	before = read(a, tlsfiles.CertFile)
	for what, tc := range map[string]struct {
		config  Config
		options InitOptions
		want    string
	}{
		"another site": {Config{Dir: a.Dir, Name: "site-c"}, InitOptions{AuthorityDir: authority},
			"is that of site site-a"},
		"another site, renew": {Config{Dir: a.Dir, Name: "site-c"}, InitOptions{Renew: true}, "is that of site site-a"},
		"another authority":   {a, InitOptions{AuthorityDir: other}, "is of another authority"},
		"no authority":        {a, InitOptions{AuthorityDir: other + "/none"}, "cannot be compared"},
	} {
		if err := Init(tc.config, tc.options); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: error %v, want %q", what, err, tc.want)
		}
		if read(a, tlsfiles.CertFile) != before {
			t.Errorf("%s changed the certificate", what)
		}
	}
	for _, c := range []Config{{Dir: "relative", Name: "x"}, {Dir: "/" + strings.Repeat("x", 100), Name: "x"}} {
		if err := Init(c, InitOptions{}); err == nil {
			t.Errorf("directory %s was taken", c.Dir)
		}
	}
}
