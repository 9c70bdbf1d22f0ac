package main

import (
	"bytes"
	"strings"
	"testing"
)

// memVolume is a volume that holds what it is given.
type memVolume []byte

func (m memVolume) Size() int64 { return int64(len(m)) }

func (m memVolume) ReadAt(p []byte, off int64) (int, error) { return copy(p, m[off:]), nil }

func TestStampTellsDamage(t *testing.T) {
	h := &history{}
	h.addVolume("v0", 4)
	o := h.issue(opWrite, 3, 0, 1, 2)
	good := make(memVolume, 4*blockBytes)
	stamp(good[blockBytes:3*blockBytes], 7, o)
	shown, err := h.read(7, 0, good, true)
	if err != nil {
		t.Fatal(err)
	}
	if shown.units[0] != nil || shown.units[1] != o || shown.units[2] != o || shown.units[3] != nil {
		t.Fatalf("%v", shown.units)
	}
	for name, damage := range map[string]func(v memVolume){
		"bit":           func(v memVolume) { v[blockBytes+1000] ^= 1 },
		"shifted":       func(v memVolume) { copy(v[3*blockBytes:], v[blockBytes:2*blockBytes]) },
		"torn in half":  func(v memVolume) { clear(v[blockBytes+blockBytes/2 : 2*blockBytes]) },
		"torn sector":   func(v memVolume) { clear(v[blockBytes+100 : blockBytes+200]) },
		"another round": func(v memVolume) { stamp(v[blockBytes:3*blockBytes], 8, o) },
		"never issued":  func(v memVolume) { stamp(v[blockBytes:3*blockBytes], 7, &op{id: 99, writer: 3, block: 1, n: 2}) },
	} {
		t.Run(name, func(t *testing.T) {
			v := bytes.Clone(good)
			damage(v)
			if _, err := h.read(7, 0, memVolume(v), true); err == nil {
				t.Error("not noticed")
			}
		})
	}
}

// shows is a copy of one volume whose blocks show these operations.
func shows(ops ...*op) content { return content{{perBlock: 1, units: ops}} }

func TestCheckOrder(t *testing.T) {
	h := &history{}
	h.addVolume("v0", 3).joined = 1
	write := func(block int) *op {
		o := h.issue(opWrite, block, 0, block, 1)
		h.returned(o)
		return o
	}
	flush := func() { h.endFlush(h.beginFlush()) }
	a := write(0)
	b := write(1)
	flush()
	afterFirst := h.now()
	c := write(0)
	d := write(2)
	empty := h.issue(opDiscard, 1, 0, 1, 1)
	h.returned(empty)
	for _, tc := range []struct {
		name string
		got  content
		must uint64
		rule happensBefore
		ok   bool
	}{
		{"nothing", shows(nil, nil, nil), 0, afterAck, true},
		{"nothing, with something acknowledged", shows(nil, nil, nil), afterFirst, afterAck, false},
		{"first", shows(a, nil, nil), 0, afterAck, true},
		{"second without first", shows(nil, b, nil), 0, afterAck, false},
		{"second without first, in flush order", shows(nil, b, nil), 0, afterFlush, true},
		{"third without second", shows(c, nil, nil), 0, afterAck, true}, // the discard may be it
		{"last without third, unflushed", shows(a, b, d), 0, afterFlush, true},
		{"last without third", shows(a, b, d), 0, afterAck, false},
		{"last without flushed first", shows(nil, b, d), 0, afterFlush, false},
		{"all", shows(c, nil, d), h.now(), afterAck, true},
		{"all but the discard", shows(c, b, d), h.now(), afterAck, false},
	} {
		err := h.checkOrder(tc.name, tc.got, tc.must, tc.rule)
		if (err == nil) != tc.ok {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

func TestCheckImage(t *testing.T) {
	h := &history{exact: true}
	h.addVolume("v0", 2)
	first := h.issue(opWrite, 0, 0, 0, 2)
	second := h.issue(opWrite, 1, 0, 1, 1)
	h.issue(opDiscard, 0, 0, 0, 1)
	for ordinal, want := range []content{shows(nil, nil), shows(first, first), shows(first, second), shows(nil, second)} {
		for n := range 4 {
			err := h.checkImage("the copy", want, h.image(uint64(n)))
			if (err == nil) != (n == ordinal) {
				t.Errorf("the image of ordinal %d at ordinal %d: %v", ordinal, n, err)
			}
		}
	}
	err := h.checkImage("the copy", content{{absent: true}}, h.image(1))
	if err == nil || !strings.Contains(err.Error(), "lacks volume 0") {
		t.Errorf("a copy without the volume: %v", err)
	}
	h.forget(1)
	if n := h.issue(opWrite, 0, 0, 0, 1).ordinal; n != 2 {
		t.Errorf("after a crash the next ordinal is %d", n)
	}
}
