package driver

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

// TestForwardsWhatTheOperatorCalls: the operator reaches the replicators through this port only, so every method that
// it calls is forwarded, and nothing is that does not exist.
func TestForwardsWhatTheOperatorCalls(t *testing.T) {
	var source strings.Builder
	for _, pattern := range []string{"../operator/*.go", "../operator/*/*.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasSuffix(file, "_test.go") {
				source.Write(text)
			}
		}
	}
	methods := sidecarpb.File_pkg_api_sidecarpb_sidecar_proto.Services().ByName("Sidecar").Methods()
	called := 0
	for i := range methods.Len() {
		name := methods.Get(i).Name()
		calls := regexp.MustCompile(`\.` + string(name) + `\(\w+, (&sidecarpb\.|request\b)`).MatchString(source.String())
		if calls {
			called++
		}
		if calls && !slices.Contains(forwarded, name) {
			t.Errorf("the operator calls %s, which is not forwarded", name)
		}
	}
	if called < 15 {
		t.Errorf("found %d methods in the source of the operator", called)
	}
	for _, name := range forwarded {
		if methods.ByName(name) == nil {
			t.Errorf("the replicator has no method %s", name)
		}
	}
}
