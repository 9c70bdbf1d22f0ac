package main

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/internal/progflags"
	"github.com/slipstream-storage/slipstream/pkg/nodes"
	"github.com/slipstream-storage/slipstream/pkg/tlsfiles"
)

func TestFlags(t *testing.T) {
	for args, want := range map[string]string{
		"":                  "--site is missing",
		"--site b":          "--peer is missing",
		"--site b --peer a": "--tls-dir is missing",
		"--site b --peer a --peer b --insecure --nodes x=y:1": "peer b is this site itself",
		"--site B --peer a --insecure --nodes x=y:1":          `site name "B" holds 'B'`,
		"--site b --peer a/ --insecure --nodes x=y:1":         `peer: site name "a/"`,
		"--site b --peer=":                                                      "a name is missing",
		"--site b --peer a --tls-dir /t":                                        "one of --node-service and --nodes",
		"--site b --peer a --tls-dir /t --nodes x":                              `"x": it is written as name=host:port`,
		"--site b --peer a --tls-dir /t --insecure --nodes x=y:1":               "--tls-dir",
		"--site b --peer a --insecure --nodes x=y:1 --listen 192.0.2.1:1":       "listen for peers",
		"--site b --peer a --insecure --nodes x=y:1 --metrics-addr 192.0.2.1:1": "listen for metrics",
		"--site b --peer a --insecure --nodes x=y:1 extra":                      `unexpected argument "extra"`,
		"--sites b": "not defined",
	} {
		if err := run(strings.Fields(args)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want one with %q", args, err, want)
		}
	}
	for _, flag := range []string{"--version", "--help", "-h", "--help-logging"} {
		if err := run([]string{flag}); !errors.Is(err, progflags.ErrDone) {
			t.Errorf("%s: %v", flag, err)
		}
	}
}

// Without a certificate that can be used the gateway runs, admits no peer, and takes the right files without a restart.
func TestCertificateThatCannotWork(t *testing.T) {
	authority, err := tlsfiles.NewAuthority(t.TempDir(), "test")
	if err != nil {
		t.Fatal(err)
	}
	own, peers := t.TempDir(), t.TempDir()
	for dir, name := range map[string]string{own: "site-x", peers: "site-a"} {
		if err := authority.IssueSite(dir, name, nil, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	peer, err := tlsfiles.OpenDir(peers)
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	_ = free.Close()

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		c := config{site: "site-b", listen: address, tlsDir: own, peers: []string{"site-a"}}
		ended <- serve(ctx, c, nodes.Static{"n": "127.0.0.1:1"})
	}()
	shaken := func() error {
		client := peer.ClientConfig("site-b")
		client.NextProtos = []string{"h2"}
		dialer := tls.Dialer{Config: client}
		conn, err := dialer.DialContext(ctx, "tcp", address)
		if err == nil {
			_ = conn.Close()
		}
		return err
	}
	eventually := func(what string, ok func(error) bool) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
			err := shaken()
			if ok(err) {
				return
			}
			select {
			case err := <-ended:
				t.Fatalf("it ended: %v", err)
			default:
			}
			if time.Now().After(deadline) {
				t.Fatalf("never %s: %v", what, err)
			}
		}
	}
	eventually("listening, and refusing", func(err error) bool {
		return err != nil &&
			strings.Contains(err.Error(), "tls: internal error")
	})
	if err := authority.IssueSite(own, "site-b", nil, time.Hour); err != nil {
		t.Fatal(err)
	}
	eventually("taking calls with the right certificate", func(err error) bool { return err == nil })
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
