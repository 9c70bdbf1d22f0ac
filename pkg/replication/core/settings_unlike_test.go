package core

import "testing"

func TestSettingsUnlike(t *testing.T) {
	have := Settings{Peer: "site-b", JournalSizeBytes: 1 << 30, JournalFull: PolicyTrack}
	if got := have.Unlike(have); got != "" {
		t.Errorf("the same settings: %s", got)
	}
	want := have
	want.Peer, want.HistoryMillis, want.Shard = "site-c", 1000, Shard{Group: "s", ID: 2}
	const text = `peer is "site-b", not "site-c", historyMillis is "0", not "1000", ` +
		`shard is {Group: ID:0 EpochMillis:0}, not {Group:s ID:2 EpochMillis:0}`
	if got := have.Unlike(want); got != text {
		t.Errorf("got  %s\nwant %s", got, text)
	}
}
