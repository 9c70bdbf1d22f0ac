package main

import (
	"io"
	"strconv"
	"sync"
	"testing"
	"time"
)

// device hands out numbered packets and notes what is written and when.
type device struct {
	mu      sync.Mutex
	packets int
	read    []time.Time
	written []string
	at      []time.Time
}

func (d *device) Read(b []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.read) == d.packets {
		return 0, io.EOF
	}
	d.read = append(d.read, time.Now())
	return copy(b, strconv.Itoa(len(d.read))), nil
}

func (d *device) Write(b []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.written = append(d.written, string(b))
	d.at = append(d.at, time.Now())
	return len(b), nil
}

// TestRelayKeepsOrderAndDelay: no packet comes out before its time, and none overtakes another.
func TestRelayKeepsOrderAndDelay(t *testing.T) {
	const delay = 20 * time.Millisecond
	d := &device{packets: 100}
	if err := relay(d, delay, 1000); err != nil {
		t.Fatal(err)
	}
	if len(d.written) != d.packets {
		t.Fatalf("%d of %d packets came out", len(d.written), d.packets)
	}
	for i, text := range d.written {
		if text != strconv.Itoa(i+1) {
			t.Errorf("packet %d is number %s", i+1, text)
		}
		if held := d.at[i].Sub(d.read[i]); held < delay {
			t.Errorf("packet %d was held for %v only", i+1, held)
		}
	}
}

// TestRelayDropsWhatDoesNotFit: a full queue loses packets and delays no sender.
func TestRelayDropsWhatDoesNotFit(t *testing.T) {
	d := &device{packets: 100}
	if err := relay(d, time.Second, 10); err != nil {
		t.Fatal(err)
	}
	// The queue, and at most one in the writer's hand.
	if len(d.written) < 10 || len(d.written) > 11 {
		t.Errorf("%d packets came out", len(d.written))
	}
}
