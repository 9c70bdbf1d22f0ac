package blockdev

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// helperEnv makes the test binary act as another process that opens a pool and holds it until its input ends.
const helperEnv = "BLOCKDEV_TEST_HOLD_POOL"

func TestMain(m *testing.M) {
	if arg := os.Getenv(helperEnv); arg != "" {
		holdPool(arg)
		return
	}
	lockPatience = 100 * time.Millisecond // most of the tests wait in vain
	goleak.VerifyTestMain(m)
}

// lockPatiently has calls of the test wait for a lock for as long as d.
func lockPatiently(t *testing.T, d time.Duration) {
	t.Helper()
	before := lockPatience
	lockPatience = d
	t.Cleanup(func() { lockPatience = before })
}

func holdPool(dir string) {
	p, err := OpenPool(vfs.OS, dir, WhoDriver)
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	fmt.Println("holding", p.ID())
	_, _ = os.Stdin.Read(make([]byte, 1))
	os.Exit(0) // without Close: the kernel lets go
}

func noErr(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErrText(t testing.TB, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one with %q", parts)
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q does not say %q", err, part)
		}
	}
}
