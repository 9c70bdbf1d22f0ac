package replication

import (
	"strings"
	"testing"

	"github.com/slipstream-storage/slipstream/pkg/recordfile"
	"github.com/slipstream-storage/slipstream/pkg/replication/core"
	"github.com/slipstream-storage/slipstream/pkg/replication/link"
)

// What an earlier release or another program stored is checked as what comes from a call or a peer is: a member that
// no volume can be costs its group, by name, and neither the other groups nor the process.
func TestBadMemberOnDiskCostsItsGroup(t *testing.T) {
	for want, change := range map[string]func(*core.Member){
		`volume v0: file system "fuse.sh" is neither ext4 nor xfs`: func(m *core.Member) { m.FSType = "fuse.sh" },
		`file system "fuse.sh"`:     func(m *core.Member) { m.Format = []byte(`{"state":"formatted","fsType":"fuse.sh"}`) },
		`claim "\x1b[2J"`:           func(m *core.Member) { m.Claim = []byte(`{"name":"\u001b[2J"}`) },
		"the largest index is":      func(m *core.Member) { m.Index = 1<<32 - 1 },
		"volume v0: format record:": func(m *core.Member) { m.Format = []byte(`7`) },
	} {
		t.Run(want, func(t *testing.T) {
			s := newTestSite(t, link.NewNetwork(nil), "site-a", nil)
			bad := s.createGroup("bad", "", 1, 1<<20, nil)
			s.createGroup("good", "", 0, 0, nil)
			path := bad.path(core.MetaFile)
			s.kill()
			meta, err := loadMeta(s.fs, path)
			if err != nil {
				t.Fatal(err)
			}
			change(&meta.Members[0])
			if err := recordfile.Write(s.fs, path, core.MetaKind, &meta); err != nil {
				t.Fatal(err)
			}
			s.open()
			broken := s.site.Broken()
			if len(s.site.Groups()) != 1 || len(broken) != 1 {
				t.Fatalf("%d groups are open, broken: %v", len(s.site.Groups()), broken)
			}
			if text := broken[bad.dir].Error(); !strings.Contains(text, want) || !strings.Contains(text, path) {
				t.Fatalf("%s: the reason is %s", want, text)
			}
		})
	}
}
