package driver

import (
	"strings"
	"testing"

	"github.com/slipstream-storage/slipstream/pkg/driver/host"
	"github.com/slipstream-storage/slipstream/pkg/plugin"
)

func TestNodeIDs(t *testing.T) {
	for id, ok := range map[string]bool{
		"node-a": true, "10.0.0.1": true, "Node_A": true, strings.Repeat("n", 63): true,
		"": false, strings.Repeat("n", 64): false, "-n_1/..": false, "a b": false, "a/b": false, "-a": false, "a.": false,
		"kö": false,
	} {
		if err := plugin.ValidateNodeID(id); (err == nil) != ok {
			t.Errorf("%q: %v", id, err)
		}
	}
	long := strings.Repeat("n", 64)
	_, err := newDriver(Options{NodeID: long, PoolDir: t.TempDir()}, host.System{})
	if err == nil || !strings.Contains(err.Error(), plugin.TopologyKey) || !strings.Contains(err.Error(), "63") {
		t.Errorf("a driver whose node id is no label value: %v", err)
	}
}
