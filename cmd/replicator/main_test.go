package main

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/slipstream-storage/slipstream/internal/progflags"
	"github.com/slipstream-storage/slipstream/pkg/tlsfiles"
)

func TestPeerFlag(t *testing.T) {
	p := peerFlags{}
	for value, want := range map[string]string{
		"":          "name=address",
		"=h:1":      "name=address",
		"site-b":    "name=address",
		"site-b=h":  "missing port",
		"again=h:1": "there twice",
	} {
		p["again"] = ""
		if err := p.Set(value); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", value, err, want)
		}
	}
	for _, value := range []string{"called=h:1", "calls="} {
		if err := p.Set(value); err != nil {
			t.Errorf("%q: %v", value, err)
		}
	}
}

func TestFlags(t *testing.T) {
	for _, flag := range []string{"--version", "--help", "-h", "--help-logging"} {
		if _, err := parse([]string{flag}); !errors.Is(err, progflags.ErrDone) {
			t.Errorf("%s: %v", flag, err)
		}
	}
	for args, want := range map[string]string{
		"--site a stray": `unexpected argument "stray"`, "--sites a": "not defined", "--peer a": "name=address",
	} {
		if _, err := parse(strings.Fields(args)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want one with %q", args, err, want)
		}
	}
}

// Names that cannot work are refused at the start, before a group is opened or a port. A certificate that cannot work
// is not: package testsite has that.
func TestNamesAreCheckedAtTheStart(t *testing.T) {
	dir := t.TempDir()
	for name, tc := range map[string]struct {
		site  string
		peers peerFlags
		want  string
	}{
		"itself as a peer":          {"site-a", peerFlags{"site-a": "h:1"}, "peer site-a is this site itself"},
		"no name for a certificate": {"Site_A", peerFlags{"site-b": "h:1"}, `site name "Site_A"`},
		"no name of a site":         {"site-a", peerFlags{"site b": "h:1"}, `peer: site name "site b"`},
	} {
		c := config{endpoint: "unix://" + filepath.Join(dir, "s.sock"), site: tc.site, pool: t.TempDir(),
			peers: tc.peers, compression: "none",
			ca: filepath.Join(dir, tlsfiles.CAFile), cert: filepath.Join(dir, tlsfiles.CertFile),
			key: filepath.Join(dir, tlsfiles.KeyFile)}
		if err := run(c); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}
