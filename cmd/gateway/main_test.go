package main

import (
	"strings"
	"testing"
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
		"--site b --peer a --tls-dir /no/such --nodes x=y:1":                    "/no/such",
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
	if err := run([]string{"--version"}); err != nil {
		t.Errorf("--version: %v", err)
	}
}
