package credentials

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/tlsfiles"
)

const validity = 40 * 24 * time.Hour

// TestNoInterruption runs through several renewals at random times, ended at random between two writes, with readers
// that see what was there up to settle ago. Each side always trusts what the other shows, and certificates are renewed
// before they end.
func TestNoInterruption(t *testing.T) {
	for range 6 {
		seed := rand.Uint64()
		random := rand.New(rand.NewPCG(seed, 0))
		w := world{t: t, seed: seed, random: random, now: time.Now()}
		w.step(2)
		steps := map[step]int{}
		first := w.history[0][0].side.cert
		for end := w.now.Add(3 * validity); w.now.Before(end); {
			w.now = w.now.Add(time.Duration(random.Int64N(int64([]time.Duration{settle, 24 * time.Hour}[random.IntN(2)]))))
			steps[w.step(random.IntN(3))]++
			w.check()
		}
		if steps[made] > 0 || steps[switched] < 3 || steps[pruned] == 0 {
			t.Errorf("seed %d: steps %v", seed, steps)
		}
		// Left alone it comes to rest, with one authority.
		for range 6 {
			w.now = w.now.Add(settle)
			w.step(2)
			w.check()
		}
		if last := w.side(0); bytes.Equal(first, last.cert) || bytes.Count(last.ca, []byte("BEGIN")) != 1 {
			t.Errorf("seed %d: the certificate is the first one, or there is more than one authority:\n%s", seed, last.ca)
		}
	}
}

// world has the versions of both Secrets since the beginning.
type world struct {
	t       *testing.T
	seed    uint64
	random  *rand.Rand
	now     time.Time
	history [2][]version
}

type version struct {
	since time.Time
	side  *side
}

func (w *world) side(i int) *side {
	if len(w.history[i]) == 0 {
		return nil
	}
	return w.history[i][len(w.history[i])-1].side
}

// step runs the plan, and ends after as many writes.
func (w *world) step(writes int) step {
	w.t.Helper()
	next, done, err := plan(pair{w.side(0), w.side(1)}, w.now, validity)
	if err != nil {
		w.t.Fatal(err)
	}
	if done == none {
		return none
	}
	for i, s := range []*side{next.node, next.controller}[:writes] {
		w.history[i] = append(w.history[i], version{w.now, s})
	}
	return done
}

// visible are the versions of a Secret that a pod may have.
func (w *world) visible(i int) (list []*side) {
	versions := w.history[i]
	for j, v := range versions {
		if j == len(versions)-1 || w.now.Sub(versions[j+1].since) < settle {
			list = append(list, v.side)
		}
	}
	return list
}

func (w *world) check() {
	w.t.Helper()
	for _, n := range w.visible(0) {
		for _, c := range w.visible(1) {
			if !trusts(c.ca, n.cert, n.key, tlsfiles.NodeName, w.now) ||
				!trusts(n.ca, c.cert, c.key, tlsfiles.ControllerName, w.now) {
				w.t.Fatalf("seed %d: at %v the sides do not trust each other", w.seed, w.now)
			}
		}
	}
}

// TestBrokenPairsAreReplaced: what does not work is replaced at once; what does work stays.
func TestBrokenPairsAreReplaced(t *testing.T) {
	now := time.Now()
	fresh := func() pair {
		p, err := issue(now.Add(-2*settle), validity)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	other := fresh()
	for name, tt := range map[string]struct {
		spoil func(p *pair)
		at    time.Time
		want  step
	}{
		"nothing there":        {func(p *pair) { *p = pair{} }, now, made},
		"no node":              {func(p *pair) { p.node = nil }, now, made},
		"no controller":        {func(p *pair) { p.controller = nil }, now, made},
		"of another authority": {func(p *pair) { p.node = other.node }, now, made},
		"another key":          {func(p *pair) { p.node.key = other.node.key }, now, made},
		"rubbish":              {func(p *pair) { p.controller.cert = []byte("x") }, now, made},
		"empty":                {func(p *pair) { p.controller.ca = nil }, now, made},
		"the nodes' for the controller's": {func(p *pair) {
			p.controller.cert, p.controller.key = p.node.cert, p.node.key
		}, now, made},
		"ended": {func(*pair) {}, now.Add(validity), made},
		"good":  {func(*pair) {}, now, none},
		"due":   {func(*pair) {}, now.Add(validity * 3 / 4), prepared},
		"prepared on one side": {func(p *pair) {
			p.node.nextCert, p.node.nextKey = other.node.cert, other.node.key
		}, now, prepared},
		"an authority that signed nothing": {func(p *pair) { p.node.ca = append(p.node.ca, other.node.ca...) }, now, pruned},
	} {
		t.Run(name, func(t *testing.T) {
			p := fresh()
			tt.spoil(&p)
			next, done, err := plan(p, tt.at, validity)
			if err != nil || done != tt.want {
				t.Fatalf("%q, %v", done, err)
			}
			if !next.fits(tt.at) {
				t.Error("the sides do not trust each other afterwards")
			}
		})
	}
}
