package replication

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/replication/link"
)

// Power fails again and again at a group whose journal is empty but for records that were not flushed: their segments
// may leave a header and nothing else, or nothing at all. What is flushed afterwards is applied, and what was flushed
// is never taken for applied.
func TestPowerLossesOfAnEmptyJournal(t *testing.T) {
	rng := seeded(t)
	for round := range 150 {
		s := newTestSite(t, link.NewNetwork(nil), "site-a", func(c *Config) {
			c.ApplyInterval, c.CommitInterval = time.Hour, time.Hour
		})
		s.createGroup("shop", "", 1, 1<<20, nil)
		content, log := byte(0), ""
		write := func(flush bool) {
			v := volumeOf(t, s.group("shop"), "v0")
			mustWrite(t, v, 0, block(content+1, 4096))
			log += "w"
			if flush {
				mustFlush(t, v)
				content++
				log += "f"
			}
		}
		apply := func() {
			t.Helper()
			g := s.group("shop")
			if err := g.applier.applyAll(context.Background()); err != nil {
				t.Fatalf("round %d, %s: %v", round, log, err)
			}
			if at, end := g.checkpoint.read().Applied, g.journal.DurableEnd(); at.Before(end) || end.Before(at) {
				t.Fatalf("round %d, %s: applied up to %v, the journal ends at %v", round, log, at, end)
			}
			log += "a"
		}
		end := func(powerPercent int) {
			t.Helper()
			if log += "k"; powerPercent < 0 {
				s.restart()
			} else {
				s.crash(powerPercent, rng)
				log += "p"
			}
			if broken := s.site.Broken(); len(broken) > 0 {
				t.Fatalf("round %d, %s: %v", round, log, broken)
			}
			p := make([]byte, 1)
			_, err := volumeOf(t, s.group("shop"), "v0").ReadAt(p, 0)
			if err != nil || p[0] != content && p[0] != content+1 {
				t.Fatalf("round %d, %s: read %d, %v; flushed was %d", round, log, p[0], err, content)
			}
			content = p[0]
		}
		for range 3 {
			write(true)
			apply()
			end(0) // the segment takes no more records, and can leave the journal
			if g := s.group("shop"); rng.IntN(2) == 0 {
				if err := g.trimmer.trim(); err != nil {
					t.Fatal(err)
				}
			}
			for range 3 {
				write(false)
				end(50)
				// What the group writes for itself, such as group.json, puts the place into the checkpoint.
				if g := s.group("shop"); rng.IntN(2) == 0 {
					g.mu.Lock()
					err := g.saveMeta()
					g.mu.Unlock()
					if err != nil {
						t.Fatal(err)
					}
				}
				if rng.IntN(3) == 0 {
					apply()
				}
			}
			viewed := rng.IntN(2) == 0
			if viewed {
				if _, err := s.group("shop").CreateView(context.Background(), ViewSpec{Name: "look"}); err != nil {
					t.Fatalf("round %d, %s: %v", round, log, err)
				}
				log += "v"
			}
			shown := content
			if rng.IntN(2) == 0 {
				end(rng.IntN(2) * 50)
			}
			write(true)
			end([]int{-1, 0, 50, 100}[rng.IntN(4)])
			apply()
			if viewed {
				checkEmptyJournalView(t, s.group("shop"), shown, fmt.Sprintf("round %d, %s", round, log))
			}
		}
		s.kill()
	}
}

// checkEmptyJournalView reads the view, and deletes it.
func checkEmptyJournalView(t *testing.T, g *Group, want byte, when string) {
	t.Helper()
	view, err := g.View("look")
	if err != nil {
		t.Fatalf("%s: %v", when, err)
	}
	p := make([]byte, 1)
	if _, err := view.Volumes()[0].ReadAt(p, 0); err != nil || p[0] != want {
		t.Fatalf("%s: the view shows %d, %v; it was opened at %d", when, p[0], err, want)
	}
	if err := g.DeleteView("look"); err != nil {
		t.Fatal(err)
	}
}
