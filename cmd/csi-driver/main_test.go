package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/slipstream-storage/slipstream/internal/progflags"
)

func TestFlags(t *testing.T) {
	for args, want := range map[string]string{
		"":                                     "--node-id is missing",
		"--node-id n":                          "--pool is missing",
		"--node-id n --pool /p extra":          `unexpected argument "extra"`,
		"--nodeid n":                           "not defined",
		"--node-id n --pool /proc/no-such-dir": "/proc/no-such-dir",

		"--mode=both":                            `--mode is "both"`,
		"--nodes a=x:1 --node-id n --pool /p":    "--nodes is for --mode=controller only",
		"--node-id n --pool /p --tcp-address :1": "--tcp-address needs --tls-dir",
		"--mode=controller --pool /p":            "--pool is for --mode=node only",
		"--node-id n --pool /p --csi-addons-endpoint /s": "--csi-addons-endpoint is for " +
			"--mode=controller only",
		"--mode=controller":              "--tls-dir is missing",
		"--mode=controller --tls-dir /t": "one of --node-service and --nodes",
		"--mode=controller --tls-dir /t --nodes a=b:1 --node-service x/y":         "one of --node-service and --nodes",
		"--mode=controller --tls-dir /t --node-service x/y --kubeconfig /no/such": "/no/such",
		"--mode=controller --tls-dir /t --nodes a":                                `"a": it is written as name=host:port`,
		"--mode=controller --tls-dir /t --nodes a=b":                              "missing port",
		"--mode=controller --tls-dir /t --nodes a=b:1,a=c:1":                      "node a is there twice",
		"--mode=controller --tls-dir /no/such --nodes a=b:1":                      "/no/such",

		"--mode=credentials": "the namespace of the Secrets is missing",
		"--mode=credentials --namespace n --node-secret a":                          "name both or neither",
		"--mode=credentials --namespace n --metrics-secret a --pool /p":             "--pool is not for --mode=credentials",
		"--mode=credentials --namespace n --metrics-secret a --validity 1h":         "want at least",
		"--mode=credentials --namespace n --metrics-secret a --kubeconfig /no/such": "/no/such",
		"--node-id n --pool /p --metrics-secret a": "--metrics-secret is for " +
			"--mode=credentials only",
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
