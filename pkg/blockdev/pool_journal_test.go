package blockdev

import (
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/recordfile"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

func reopen(t *testing.T, fsys vfs.FS, who Who, journalDir string) (*Pool, error) {
	t.Helper()
	p, err := OpenPool(fsys, "/pool", who, WithJournalDir(journalDir))
	if err == nil {
		noErr(t, p.Close())
	}
	return p, err
}

// TestJournalDir: a pool whose journals are elsewhere stays so, knows its own, and does not open without them.
func TestJournalDir(t *testing.T) {
	m := vfs.NewMem()
	p, err := reopen(t, m, WhoDriver, "/fast/a")
	noErr(t, err)
	id := p.ID()
	for _, who := range []Who{WhoDriver, WhoReplicator, WhoReader} {
		for _, dir := range []string{"/fast/a", ""} {
			p, err := reopen(t, m, who, dir)
			noErr(t, err)
			if p.GroupsDir() != "/fast/a/groups" || p.ID() != id {
				t.Errorf("opened by %d with %q: groups in %s, id %s, want %s", who, dir, p.GroupsDir(), p.ID(), id)
			}
		}
	}
	if _, err := m.Stat("/pool/groups"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("groups in the pool, too: %v", err)
	}

	refused := func(err error, want string) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	// Not mounted, or another one's.
	noErr(t, m.Rename("/fast/a/journals.json", "/fast/kept"))
	for _, who := range []Who{WhoDriver, WhoReplicator} {
		_, err = reopen(t, m, who, "/fast/a")
		refused(err, "mounted")
		_, err = reopen(t, m, who, "/fast/b")
		refused(err, "mounted")
	}
	if _, err := m.Stat("/fast/b"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the other directory was touched: %v", err)
	}
	noErr(t, recordfile.Write(m, "/fast/a/journals.json", kindJournals, &journalsRecord{PoolID: "other"}))
	_, err = reopen(t, m, WhoReplicator, "")
	refused(err, "of pool other")
	noErr(t, m.Rename("/fast/kept", "/fast/a/journals.json"))
	_, err = reopen(t, m, WhoReplicator, "")
	noErr(t, err)

	for _, bad := range []string{"journals", "/fast/../a", "/pool", "/fast/"} {
		if _, err := reopen(t, m, WhoReplicator, bad); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// TestJournalDirMoves: a pool without groups takes another directory, one with groups does not, and no pool takes one
// that has groups.
func TestJournalDirMoves(t *testing.T) {
	m := vfs.NewMem()
	_, err := reopen(t, m, WhoDriver, "")
	noErr(t, err)
	noErr(t, m.MkdirAll("/taken/groups/x"))
	_, err = reopen(t, m, WhoReplicator, "/taken")
	if err == nil || !strings.Contains(err.Error(), "use an empty directory") {
		t.Errorf("took a directory with groups: %v", err)
	}
	p, err := reopen(t, m, WhoReplicator, "")
	noErr(t, err)
	if p.GroupsDir() != "/pool/groups" {
		t.Errorf("groups in %s after a refusal", p.GroupsDir())
	}
	_, err = reopen(t, m, WhoReplicator, "/fast/a")
	noErr(t, err)
	p, err = reopen(t, m, WhoReplicator, "/fast/b")
	noErr(t, err)
	if p.GroupsDir() != "/fast/b/groups" {
		t.Errorf("groups in %s", p.GroupsDir())
	}
	running, err := OpenPool(m, "/pool", WhoReplicator)
	noErr(t, err)
	if _, err := reopen(t, m, WhoDriver, "/fast/c"); err == nil || !strings.Contains(err.Error(), "a replicator runs") {
		t.Errorf("moved under a replicator that runs: %v", err)
	}
	_, err = reopen(t, m, WhoDriver, "/fast/b")
	noErr(t, err)
	noErr(t, running.Close())
	noErr(t, m.MkdirAll("/fast/b/groups/shop"))
	for _, dir := range []string{"/fast/a", "/fast/c"} {
		if _, err := reopen(t, m, WhoReplicator, dir); err == nil || !strings.Contains(err.Error(), "such as shop") {
			t.Errorf("left a group behind: %v", err)
		}
	}
	p, err = reopen(t, m, WhoDriver, "")
	noErr(t, err)
	if p.GroupsDir() != "/fast/b/groups" {
		t.Errorf("groups in %s", p.GroupsDir())
	}
}

// TestJournalDirCrash cuts the power at each step of making a pool with journals elsewhere, and of giving one that is
// there another directory: the next start goes on.
func TestJournalDirCrash(t *testing.T) {
	for _, first := range []string{"", "/fast/a"} {
		for steps := 0; ; steps++ {
			m := vfs.NewMem()
			_, err := reopen(t, m, WhoReplicator, first)
			noErr(t, err)
			left, died := steps, errors.New("died")
			_, err = reopen(t, vfs.NewErrFS(m, func(vfs.Op, string) error {
				if left--; left < 0 {
					return died
				}
				return nil
			}), WhoReplicator, "/fast/b")
			if err == nil {
				if steps < 10 {
					t.Errorf("only %d steps", steps)
				}
				break
			}
			for _, survive := range []int{0, 100} {
				crashed := m.CrashClone(vfs.CrashConfig{UnsyncedPercent: survive})
				p, err := reopen(t, crashed, WhoReplicator, "/fast/b")
				if err != nil || p.GroupsDir() != "/fast/b/groups" {
					t.Fatalf("died before step %d (%q first): %v", steps, first, err)
				}
				p, err = reopen(t, crashed, WhoDriver, "")
				if err != nil || p.GroupsDir() != "/fast/b/groups" {
					t.Fatalf("died before step %d (%q first), opened twice: %v", steps, first, err)
				}
			}
		}
	}
}

// TestJournalDirUnderAReplicator: a driver that is to move the journals of a replicator that runs is refused at once:
// it has the records locked.
func TestJournalDirUnderAReplicator(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pool")
	openPool(t, vfs.OS, dir, WhoReplicator)
	lockPatiently(t, time.Hour)
	var err error
	finishes(t, "opening the pool", func() {
		_, err = OpenPool(vfs.OS, dir, WhoDriver, WithJournalDir(filepath.Join(filepath.Dir(dir), "fast")))
	})
	wantErrText(t, err, "a replicator runs")
}
