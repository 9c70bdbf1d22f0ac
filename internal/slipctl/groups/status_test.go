package groups

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/internal/slipctl/frame"
	"github.com/slipstream-storage/slipstream/pkg/api/sidecarpb"
)

// The status of a group says which tails its site keeps, and why a sync copies everything; without either it has no
// line for it.
func TestStatusOfTailsAndFullCopies(t *testing.T) {
	const why = "site-a has lost its change map (changemap)"
	month := (30 * 24 * time.Hour).Milliseconds()
	for _, c := range []struct {
		group *sidecarpb.GroupStatus
		want  []string
	}{
		{&sidecarpb.GroupStatus{}, nil},
		{&sidecarpb.GroupStatus{TailsMost: 5}, []string{"tails kept at most 5 at this site; the newest stays"}},
		{&sidecarpb.GroupStatus{TailsMillis: month},
			[]string{"tails kept for 720h0m0s at this site; the newest stays"}},
		{&sidecarpb.GroupStatus{TailsMost: 5, TailsMillis: month, FullCopyReason: why},
			[]string{"tails kept at most 5 and for 720h0m0s at this site; the newest stays", "full copy " + why}},
	} {
		var out bytes.Buffer
		if err := (&cli{&frame.CLI{Out: &out}}).printGroup(c.group); err != nil {
			t.Fatal(err)
		}
		var got []string
		for line := range strings.Lines(out.String()) {
			line = strings.Join(strings.Fields(line), " ")
			if strings.HasPrefix(line, "tails ") || strings.HasPrefix(line, "full copy ") {
				got = append(got, line)
			}
		}
		if strings.Join(got, "\n") != strings.Join(c.want, "\n") {
			t.Errorf("%v shows %q instead of %q", c.group, got, c.want)
		}
	}
}
