package journal

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"sort"
	"time"

	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// DumpOptions configure Dump.
type DumpOptions struct {
	JSON     bool // one JSON object per line instead of tables
	Segments bool // only the segments and the end, not each record
	// OldestSegment is the checkpoint's: segments below it are free. 0 takes the longest chain that ends in the newest
	// segment, which is what a person without the checkpoint wants to see.
	OldestSegment uint64
	// StartOrdinal and MinDurableOrdinal are as in Options; the dump then judges the end as Open would.
	StartOrdinal      uint64
	MinDurableOrdinal uint64
}

type dumpSegment struct {
	Type         string `json:"type"` // "segment"
	File         string `json:"file"`
	State        string `json:"state"` // live, free, behind (not reached by the stream), blank, damaged
	Bytes        int64  `json:"bytes"`
	Sequence     uint64 `json:"sequence,omitempty"`
	FirstOrdinal uint64 `json:"firstOrdinal,omitempty"`
	LastOrdinal  uint64 `json:"lastOrdinal,omitempty"`
	End          int64  `json:"end,omitempty"`
	Prev         string `json:"prev,omitempty"`
	Timeline     string `json:"timeline,omitempty"`
	Durable      uint64 `json:"durable"`
	Problem      string `json:"problem,omitempty"`
}

type dumpRecord struct {
	Type    string    `json:"type"` // "record"
	At      string    `json:"at"`
	Kind    string    `json:"kind"`
	Ordinal uint64    `json:"ordinal"`
	Durable uint64    `json:"durable"`
	Volume  uint32    `json:"volume"`
	Offset  int64     `json:"offset"`
	Length  uint32    `json:"length"`
	Epoch   uint32    `json:"epoch,omitempty"`
	Shard   uint16    `json:"shard,omitempty"`
	Flags   uint8     `json:"flags,omitempty"`
	DataCRC string    `json:"dataCRC"`
	Time    time.Time `json:"time"`
}

type dumpEnd struct {
	Type    string `json:"type"` // "end"
	How     string `json:"how"`  // end, torn tail, corruption
	At      string `json:"at"`
	Ordinal uint64 `json:"ordinal"` // of the last good record
	Why     string `json:"why,omitempty"`
}

// Dump writes what is in a journal's directory: its records in stream order, its segments, and where and why the stream
// ends. It only reads. A damaged journal is dumped as far as it can be read and is no error; a journal in use is dumped
// as it was found, so its end may look torn.
func Dump(fs vfs.FS, dir string, w io.Writer, opts DumpOptions) error {
	files, err := readSegments(fs, dir, fs.OpenReadOnly)
	defer func() {
		for _, s := range files {
			if s.f != nil {
				_ = s.f.Close()
			}
		}
	}()
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return fmt.Errorf("journal: %s has no segment of a journal (*%s): name the directory of a group's journal, "+
			"groups/ID/journal in a pool", dir, segmentSuffix)
	}
	out := &dumper{w: w, json: opts.JSON}
	sc := &scanner{oldest: opts.OldestSegment, start: opts.StartOrdinal, minDurable: opts.MinDurableOrdinal}
	if sc.oldest == 0 {
		sc.oldest = guessOldest(files)
	}
	if !opts.Segments {
		out.line("%-20s %-10s %12s %12s %6s %16s %10s %8s %s\n", "POSITION", "KIND", "ORDINAL", "DURABLE", "VOLUME",
			"OFFSET", "LENGTH", "DATACRC", "TIME")
		sc.visit = func(d diskHeader, loc Location) error {
			r := dumpRecord{"record", Position{loc.Segment, loc.Offset - recordHeaderBytes}.String(), d.Kind.String(),
				d.Ordinal, d.DurableOrdinal, d.Volume,
				d.Offset, d.Length, d.Epoch, d.Shard, d.flags, fmt.Sprintf("%08x", d.DataCRC), time.Unix(0, d.UnixNanos).UTC()}
			out.value(r)
			out.line("%-20s %-10s %12d %12d %6d %16d %10d %8s %s\n", r.At, r.Kind, r.Ordinal, r.Durable, r.Volume,
				r.Offset, r.Length, r.DataCRC,
				r.Time.Format(time.RFC3339Nano))
			return out.err
		}
	}
	scanErr := sc.scan(files)
	var c *CorruptionError
	if scanErr != nil && !errors.As(scanErr, &c) {
		return scanErr
	}
	out.segments(files, sc)

	end := dumpEnd{"end", "end", sc.end.String(), sc.head, sc.endWhy}
	if c != nil {
		end.How = "corruption"
		end.Why = fmt.Sprintf("%s at offset %d: %s", path.Base(c.File), c.Offset, c.Reason)
	} else if torn := tornBehind(sc); torn != "" {
		end.How, end.Why = "torn tail", sc.endWhy+"; "+torn
	}
	out.value(end)
	out.line("\n%s at %s after ordinal %d", end.How, end.At, end.Ordinal)
	if end.Why != "" {
		out.line(": %s", end.Why)
	}
	out.line("\n")
	return out.err
}

// guessOldest returns the sequence at which the chain that leads to the newest segment begins.
func guessOldest(files []*diskSegment) uint64 {
	bySequence := map[uint64]*diskSegment{}
	var newest uint64
	for _, s := range files {
		if s.known() {
			bySequence[s.hdr.sequence] = s
			newest = max(newest, s.hdr.sequence)
		}
	}
	oldest := newest
	for s := bySequence[oldest]; s != nil; s = bySequence[s.hdr.prev.Segment] {
		oldest = s.hdr.sequence
	}
	return oldest
}

// tornBehind says whether anything of the journal lies behind its end: what a crash left of records that were not
// synced.
func tornBehind(sc *scanner) string {
	for _, s := range sc.rest {
		if s.known() && s.hdr.sequence >= sc.oldest && s.hdr.sequence > sc.end.Segment {
			return fmt.Sprintf("segment %s lies behind it and will be retired", path.Base(s.name))
		}
	}
	if len(sc.chain) == 0 {
		return ""
	}
	s := sc.chain[len(sc.chain)-1]
	sd, w := s.hdr.seed(), s.window(nil)
	for off := s.end; off+recordHeaderBytes <= w.size; off += recordAlign {
		b, err := w.bytes(off, recordHeaderBytes)
		if err != nil {
			return err.Error()
		}
		var d diskHeader
		if hasRecordMagic(b) && d.decode(b, sd, off) == nil {
			return fmt.Sprintf("record %d at offset %d lies at or behind it and will be superseded", d.Ordinal, off)
		}
	}
	return ""
}

type dumper struct {
	w    io.Writer
	json bool
	err  error
}

func (o *dumper) line(format string, args ...any) {
	if !o.json && o.err == nil {
		_, o.err = fmt.Fprintf(o.w, format, args...)
	}
}

func (o *dumper) value(v any) {
	if o.json && o.err == nil {
		o.err = json.NewEncoder(o.w).Encode(v)
	}
}

// segments prints the live segments in stream order, then the others by file name.
func (o *dumper) segments(files []*diskSegment, sc *scanner) {
	rank := map[*diskSegment]int{}
	for i, s := range sc.chain {
		rank[s] = i - len(sc.chain)
	}
	files = append([]*diskSegment(nil), files...)
	sort.SliceStable(files, func(a, b int) bool { return rank[files[a]] < rank[files[b]] })
	o.line("\n%-16s %-8s %12s %12s %12s %12s %12s %-16s %s\n", "FILE", "STATE", "SEQUENCE", "FIRST", "LAST", "END",
		"BYTES", "CONTINUES", "TIMELINE")
	for _, s := range files {
		d := dumpSegment{Type: "segment", File: path.Base(s.name), Bytes: s.size, State: "blank"}
		if s.known() {
			d.State = "free"
			d.Sequence, d.FirstOrdinal, d.Durable = s.hdr.sequence, s.hdr.firstOrdinal, s.hdr.durable
			d.Timeline = fmt.Sprintf("%x", s.hdr.timeline)
			if s.hdr.prev.Segment > 0 {
				d.Prev = s.hdr.prev.String()
			}
			if s.hdr.sequence >= sc.oldest {
				d.State = "behind"
			}
		}
		if rank[s] < 0 {
			d.State, d.LastOrdinal, d.End = "live", s.last, s.end
		}
		if s.state == headerDamaged {
			d.State, d.Problem = "damaged", s.problem.Error()
		}
		o.value(d)
		o.line("%-16s %-8s %12d %12d %12d %12d %12d %-16s %s %s\n", d.File, d.State, d.Sequence, d.FirstOrdinal,
			d.LastOrdinal, d.End, d.Bytes, d.Prev, d.Timeline, d.Problem)
	}
}
