package kube_test

import (
	"strings"
	"testing"

	"github.com/slipstream-storage/slipstream/pkg/operator/kube"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
)

// TestWords: every command of the engine's messages that the plugin has, too, is named as one of the plugin.
func TestWords(t *testing.T) {
	want := map[core.CommandVerb]string{
		core.CommandPromote:  "`kubectl slipstream failover shop -n store` at site-b",
		core.CommandForce:    "`kubectl slipstream failover shop -n store --force` at site-b",
		core.CommandDemote:   "`kubectl slipstream demote shop -n store` at site-b",
		core.CommandRelocate: "`kubectl slipstream relocate shop -n store` at site-b",
		core.CommandYield:    "`kubectl slipstream yield shop -n store` at site-b",
		core.CommandResume:   "`kubectl slipstream resume shop -n store` at site-b",
		core.CommandCommit:   "`kubectl slipstream commit shop -n store` at site-b",
		core.CommandRollBack: "`kubectl slipstream rollback shop -n store` at site-b",
		// The plugin has none of these.
		core.CommandStatus: "`slipctl group status shop-ylevle36l6` at site-b",
		core.CommandDelete: "`slipctl group delete shop-ylevle36l6 --force` at site-b",
	}
	for _, verb := range core.CommandVerbs {
		text := core.Command{Site: "site-b", Verb: verb, Name: "shop-ylevle36l6"}.String()
		got := kube.Words("rpc error: code = FailedPrecondition desc = node b1: "+text+", or "+text, "store", "shop")
		if want := "node b1: " + want[verb] + ", or " + want[verb]; got != want {
			t.Errorf("%s: %s", verb, got)
		}
	}
	if got := kube.Words("group shop is away", "store", "shop"); strings.Contains(got, "kubectl") {
		t.Errorf("a text without a command: %s", got)
	}
}
