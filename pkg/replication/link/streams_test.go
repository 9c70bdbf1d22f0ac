package link

import (
	"context"
	"errors"
	"testing"
)

// A peer's streams are bounded, and so is what is read from before it belongs to a group; another peer is not
// touched.
func TestStreamsOfAPeerAreBounded(t *testing.T) {
	s := newStreams(20)
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	var open []*openStream
	for len(open) < maxGreeting {
		o, err := s.open(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, o)
	}
	// The next one waits, and gives its place back when it goes away.
	for range 2 * maxWaiting {
		if _, err := s.open(cancelled, "a"); !errors.Is(err, context.Canceled) {
			t.Fatalf("one more is greeted: %v", err)
		}
	}
	for len(open) < 20 {
		open[len(open)-1].greeted()
		open[len(open)-1].greeted() // every message says so
		o, err := s.open(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, o)
	}
	open[0].greeted()
	if _, err := s.open(t.Context(), "a"); !errors.Is(err, errTooMany) {
		t.Fatalf("stream 21 of 20: %v", err)
	}
	b, err := s.open(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range append(open, b) {
		o.close()
	}
	for name, p := range s.peers {
		if p.open != 0 || p.waiting != 0 || len(p.greeting) != 0 {
			t.Errorf("peer %s is left with %d open, %d waiting, %d greeted", name, p.open, p.waiting, len(p.greeting))
		}
	}
}

// A peer that opens streams and says nothing keeps only so many waiting.
func TestSilentStreamsAreBounded(t *testing.T) {
	s := newStreams(1 << 20)
	ctx, cancel := context.WithCancel(t.Context())
	results := make(chan error)
	const calls = 3 * maxWaiting
	for range calls {
		go func() {
			o, err := s.open(ctx, "a")
			if err == nil {
				<-ctx.Done()
				o.close()
			}
			results <- err
		}()
	}
	for range calls - maxWaiting { // come back at once; the others hold their places
		if err := <-results; !errors.Is(err, errTooMany) {
			t.Errorf("%v", err)
		}
	}
	cancel()
	for range maxWaiting {
		if err := <-results; errors.Is(err, errTooMany) {
			t.Errorf("%v", err)
		}
	}
}
