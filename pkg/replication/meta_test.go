package replication

import (
	"path/filepath"
	"reflect"
	"testing"

	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// The files in testdata were written by the release before this one, with every key that it knew.
func TestMetaOfEarlierRelease(t *testing.T) {
	load := func(name string) core.Meta {
		t.Helper()
		m, err := loadMeta(vfs.OS, filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		// What this release writes of it says the same.
		fsys := vfs.NewMem()
		if err := writeMeta(fsys, "/group.json", &m); err != nil {
			t.Fatal(err)
		}
		again, err := loadMeta(fsys, "/group.json")
		if err != nil || !reflect.DeepEqual(again, m) {
			t.Errorf("%s: rewritten it is %+v, %v; was %+v", name, again, err, m)
		}
		return m
	}
	demoted, secondary := load("group_demoted.json"), load("group_secondary.json")
	if want := (core.Settings{
		Peer: "site-b", PeerAddress: "other:9443", JournalSizeBytes: 64 << 20, JournalFull: core.PolicyStall,
		RPOTargetMillis: 5000, ShipBytesPerSecond: 1 << 20,
	}); demoted.Settings != want {
		t.Errorf("settings %+v, want %+v", demoted.Settings, want)
	}
	if want := (core.Settings{
		Peer: "site-a", JournalSizeBytes: 64 << 20, JournalFull: core.PolicyTrack,
	}); secondary.Settings != want {
		t.Errorf("settings %+v, want %+v", secondary.Settings, want)
	}
	if demoted.Role != core.RoleDemoted || demoted.FinalOrdinal != 99 || secondary.Role != core.RoleSecondary {
		t.Errorf("roles %s at ordinal %d, and %s", demoted.Role, demoted.FinalOrdinal, secondary.Role)
	}
	for i, want := range []core.MemberState{
		core.MemberPresent, core.MemberAdding, core.MemberUnannounced, core.MemberRemoved, core.MemberLeaving,
	} {
		if m := demoted.At(uint32(i)); m.State != want {
			t.Errorf("member %d is %s, want %s", i, m.State, want)
		}
	}
	if m := demoted.At(0); m.Joins != 2 || m.Order != "ack" || m.FSType != "ext4" || m.Image != "1:2:3" ||
		len(m.Claim) == 0 {
		t.Errorf("member 0 is %+v", m)
	}
	if m := secondary.At(3); m == nil || m.State != core.MemberRemoved {
		t.Errorf("member 3 is %+v", m)
	}
}
