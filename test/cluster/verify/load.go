package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"golang.org/x/sys/unix"
)

// headerBytes at the front of a block: its number and its generation, little-endian. What follows is made from both.
const headerBytes = 16

// file is what is written to.
type file interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
	Fd() uintptr
}

type load struct {
	f           file
	block       int
	flushEvery  int
	pause       time.Duration // after a flush
	random      *rand.Rand
	generations []uint64 // of each block; 0 is never written
	dirty       int      // writes since the last flush
	buffer      []byte
	want        []byte

	writes, reads, flushes int
	slowest                time.Duration // since the last report
	slowestEver            time.Duration
}

func newLoad(f file, blocks, block, flushEvery int, seed uint64) *load {
	return &load{
		f: f, block: block, flushEvery: flushEvery, random: rand.New(rand.NewPCG(seed, 0)),
		generations: make([]uint64, blocks), buffer: make([]byte, block), want: make([]byte, block),
	}
}

// run writes and reads until ctx ends, then reads everything.
func (l *load) run(ctx context.Context, out io.Writer) error {
	reported := time.Now()
	for ctx.Err() == nil {
		if err := l.step(); err != nil {
			return err
		}
		if l.dirty == 0 && l.pause > 0 {
			select {
			case <-time.After(l.pause):
			case <-ctx.Done():
			}
		}
		if now := time.Now(); now.Sub(reported) >= time.Second {
			fmt.Fprintln(out, l.line())
			reported, l.slowest = now, 0
		}
	}
	if err := l.flush(); err != nil {
		return err
	}
	for i := range l.generations {
		if err := l.check(i); err != nil {
			return err
		}
	}
	fmt.Fprintln(out, "done", l.line())
	return nil
}

func (l *load) line() string {
	return fmt.Sprintf("writes=%d flushes=%d reads=%d slowest=%dms slowest-ever=%dms", l.writes, l.flushes, l.reads,
		l.slowest.Milliseconds(), l.slowestEver.Milliseconds())
}

func (l *load) timed(call func() error) error {
	began := time.Now()
	err := call()
	took := time.Since(began)
	l.slowest, l.slowestEver = max(l.slowest, took), max(l.slowestEver, took)
	return err
}

// step is one write, and a read at times.
func (l *load) step() error {
	i := l.random.IntN(len(l.generations))
	l.generations[i]++
	fill(l.buffer, uint64(i), l.generations[i])
	if err := l.timed(func() error { _, err := l.f.WriteAt(l.buffer, int64(i)*int64(l.block)); return err }); err != nil {
		return fmt.Errorf("write block %d: %w", i, err)
	}
	l.writes++
	if l.dirty++; l.dirty < l.flushEvery {
		return nil
	}
	if err := l.flush(); err != nil {
		return err
	}
	return l.check(l.random.IntN(len(l.generations)))
}

func (l *load) flush() error {
	l.dirty = 0
	l.flushes++
	if err := l.timed(l.f.Sync); err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	return nil
}

// check reads a block from the device, not from this program's page cache.
func (l *load) check(i int) error {
	offset := int64(i) * int64(l.block)
	if l.generations[i] == 0 {
		return nil
	}
	// Of no effect on what is dirty, and if the kernel does not follow the advice the read is still a read.
	_ = unix.Fadvise(int(l.f.Fd()), offset, int64(l.block), unix.FADV_DONTNEED)
	if err := l.timed(func() error { _, err := l.f.ReadAt(l.buffer, offset); return err }); err != nil {
		return fmt.Errorf("read block %d: %w", i, err)
	}
	l.reads++
	fill(l.want, uint64(i), l.generations[i])
	if !bytes.Equal(l.buffer, l.want) {
		return fmt.Errorf("block %d is not what was written: it says block %d, generation %d, and generation %d was the last",
			i, binary.LittleEndian.Uint64(l.buffer), binary.LittleEndian.Uint64(l.buffer[8:]), l.generations[i])
	}
	return nil
}

// fill makes a block's content: the same for the same number and generation, different in every word otherwise.
func fill(b []byte, number, generation uint64) {
	binary.LittleEndian.PutUint64(b, number)
	binary.LittleEndian.PutUint64(b[8:], generation)
	x := number*0x9e3779b97f4a7c15 ^ generation*0xbf58476d1ce4e5b9
	for i := headerBytes; i < len(b); i++ {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		b[i] = byte(x)
	}
}
