package testenv

import (
	"fmt"
	"strings"
	"testing"
)

// recorder stands in for a test and remembers how it ended.
type recorder struct{ skipped, failed string }

func (r *recorder) Helper()                      {}
func (r *recorder) Skipf(f string, args ...any)  { r.skipped = fmt.Sprintf(f, args...) }
func (r *recorder) Fatalf(f string, args ...any) { r.failed = fmt.Sprintf(f, args...) }

func TestMissingPrerequisite(t *testing.T) {
	for _, tc := range []struct {
		ci, root string
		fails    bool
	}{
		{"", "", false},
		{"false", "0", false},
		{"true", "", true},
		{"", "1", true},
	} {
		t.Setenv("CI", tc.ci)
		t.Setenv("SLIPSTREAM_REQUIRE_ROOT", tc.root)
		var r recorder
		RequireTool(&r, "no-such-program-anywhere")
		got := r.skipped
		if tc.fails {
			got = r.failed
		}
		if (r.failed != "") != tc.fails || !strings.Contains(got, "no-such-program-anywhere") {
			t.Errorf("CI=%q SLIPSTREAM_REQUIRE_ROOT=%q: skipped %q, failed %q", tc.ci, tc.root, r.skipped, r.failed)
		}
	}
}

func TestPresentPrerequisite(t *testing.T) {
	var r recorder
	if path := RequireTool(&r, "go"); path == "" || r != (recorder{}) {
		t.Errorf("RequireTool(go) = %q, skipped %q, failed %q", path, r.skipped, r.failed)
	}
}
