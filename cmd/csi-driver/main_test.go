package main

import (
	"strings"
	"testing"
)

func TestFlags(t *testing.T) {
	for args, want := range map[string]string{
		"":                                     "--node-id is missing",
		"--node-id n":                          "--pool is missing",
		"--node-id n --pool /p extra":          `unexpected argument "extra"`,
		"--nodeid n":                           "not defined",
		"--node-id n --pool /proc/no-such-dir": "/proc/no-such-dir",
	} {
		if err := run(strings.Fields(args)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want one with %q", args, err, want)
		}
	}
	if err := run([]string{"--version"}); err != nil {
		t.Errorf("--version: %v", err)
	}
}
