package wordjson

import (
	"encoding/json"
	"testing"

	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

func TestValue(t *testing.T) {
	g := &sidecarpb.GroupStatus{
		Role: sidecarpb.Role_ROLE_PRIMARY, State: sidecarpb.GroupState_GROUP_STATE_STREAMING, HeadOrdinal: 1 << 60,
		JournalFull: sidecarpb.JournalFull_JOURNAL_FULL_STALL, LagSeconds: new(0.5),
		Volumes: []*sidecarpb.VolumeStatus{{SizeBytes: 1 << 40}},
		Loss:    &sidecarpb.LossReport{RecoveredOrdinal: 3},
	}
	value, err := Value(g)
	if err != nil {
		t.Fatal(err)
	}
	object := value.(map[string]any)
	for field, want := range map[string]any{
		"role": "primary", "state": "streaming", "journalFull": "stall", "headOrdinal": json.Number("1152921504606846976"),
		"lagSeconds": json.Number("0.5"), "lagBytes": nil, "connected": false, "name": "",
		"journalSizeBytes": json.Number("0"),
	} {
		if got, is := object[field]; !is || got != want {
			t.Errorf("%s is %#v, want %#v", field, got, want)
		}
	}
	if got := object["volumes"].([]any)[0].(map[string]any)["sizeBytes"]; got != json.Number("1099511627776") {
		t.Errorf("the size of a volume is %#v", got)
	}
	loss := object["loss"].(map[string]any)
	if loss["recoveredOrdinal"] != json.Number("3") || loss["lostOrdinals"] != nil {
		t.Errorf("the loss is %#v", loss)
	}
	if empty, err := Value(&sidecarpb.GroupStatus{}); err != nil || empty.(map[string]any)["role"] != "" ||
		empty.(map[string]any)["loss"] != nil {
		t.Errorf("%#v, %v", empty, err)
	}
}
