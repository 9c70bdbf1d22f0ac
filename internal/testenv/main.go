package testenv

import (
	"flag"
	"io"
	"os"
	"testing"

	"go.uber.org/goleak"
	"k8s.io/klog/v2"
)

// QuietMain is the TestMain of a package whose code logs: it runs the tests without their log, which is most of what
// they would print, unless SLIPSTREAM_TEST_LOG is set, and fails when goroutines are left.
func QuietMain(m *testing.M) {
	if os.Getenv("SLIPSTREAM_TEST_LOG") == "" {
		flags := flag.NewFlagSet("klog", flag.ContinueOnError)
		klog.InitFlags(flags)
		_ = flags.Set("logtostderr", "false")
		_ = flags.Set("stderrthreshold", "FATAL")
		klog.SetOutput(io.Discard)
	}
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"))
}
