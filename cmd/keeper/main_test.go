package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/slipstream-storage/slipstream/internal/progflags"
)

func TestFlags(t *testing.T) {
	for args, want := range map[string]string{
		"":                                    "--socket is missing",
		"--socket /k extra":                   `unexpected argument "extra"`,
		"--sock /k":                           "not defined",
		"--socket /proc/no/k":                 "/proc/no/k",
		"--socket /k -version -x":             "not defined",
		"--socket /k --writeback-interval 0s": "want more than nothing",
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
