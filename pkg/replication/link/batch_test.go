package link

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/proto"

	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
)

func record(ordinal uint64, data []byte) Record {
	h := journal.Header{Kind: journal.KindWrite, Volume: 3, Ordinal: ordinal, Offset: int64(ordinal) * 4096,
		Length: uint32(len(data)), UnixNanos: 1e18, DurableOrdinal: ordinal - 1, DataCRC: journal.DataCRC(data)}
	return Record{h, data}
}

func noise(n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(1, uint64(n)))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func sampleRecords(data []byte) []Record {
	discard := record(3, nil)
	discard.Header.Kind, discard.Header.Length = journal.KindDiscard, 1<<30
	half := len(data) / 2 // nothing twice: noise has to stay noise
	return []Record{record(1, data[:half]), record(2, data[half:]), discard, record(4, data[:10])}
}

func newEncoder(t testing.TB, codec linkpb.Codec) *Encoder {
	t.Helper()
	e, err := NewEncoder(codec)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func add(t testing.TB, e *Encoder, records []Record) {
	t.Helper()
	for _, r := range records {
		if !e.Add(r.Header, r.Data) {
			t.Fatalf("no room for record %d", r.Header.Ordinal)
		}
	}
}

func TestBatchRoundTrip(t *testing.T) {
	for _, tc := range []struct {
		name        string
		asked, used linkpb.Codec
		data        []byte
	}{
		{"none", linkpb.Codec_CODEC_NONE, linkpb.Codec_CODEC_NONE, bytes.Repeat([]byte("text"), 1024)},
		{"zstd", linkpb.Codec_CODEC_ZSTD, linkpb.Codec_CODEC_ZSTD, bytes.Repeat([]byte("text"), 1024)},
		{"zstd does not shrink", linkpb.Codec_CODEC_ZSTD, linkpb.Codec_CODEC_NONE, noise(64 << 10)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e, d := newEncoder(t, tc.asked), &Decoder{}
			for sequence := uint64(1); sequence <= 2; sequence++ { // memory is used again
				want := sampleRecords(tc.data)[:sequence+1]
				add(t, e, want)
				if e.RawBytes() == 0 {
					t.Errorf("%d records have no bytes", len(want))
				}
				b := e.Batch(sequence)
				if e.RawBytes() != 0 {
					t.Errorf("%d bytes after Batch", e.RawBytes())
				}
				if b.Codec != tc.used || b.Sequence != sequence {
					t.Errorf("batch %d with %v, want %d with %v", b.Sequence, b.Codec, sequence, tc.used)
				}
				got, err := d.Decode(b)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(want, got, cmp.Comparer(bytes.Equal)); diff != "" {
					t.Errorf("records (-want +got):\n%s", diff)
				}
			}
		})
	}
	for _, codec := range []linkpb.Codec{linkpb.Codec_CODEC_NONE, linkpb.Codec_CODEC_ZSTD} {
		if got, err := new(Decoder).Decode(newEncoder(t, codec).Batch(1)); err != nil || len(got) != 0 {
			t.Errorf("empty batch: %d records, %v", len(got), err)
		}
	}
	if _, err := NewEncoder(99); err == nil {
		t.Error("an encoder for a codec that is not known")
	}
}

func TestBatchIsBounded(t *testing.T) {
	e := newEncoder(t, linkpb.Codec_CODEC_ZSTD)
	r := record(1, noise(journal.MaxDataBytes))
	n := 0
	for e.Add(r.Header, r.Data) {
		n++
	}
	if n < 1 || e.RawBytes() > MaxBatchBytes {
		t.Errorf("%d records, %d bytes", n, e.RawBytes())
	}
	got, err := new(Decoder).Decode(e.Batch(1))
	if err != nil || len(got) != n {
		t.Errorf("%d records, %v", len(got), err)
	}
}

func TestBadBatches(t *testing.T) {
	e := newEncoder(t, linkpb.Codec_CODEC_NONE)
	add(t, e, sampleRecords(bytes.Repeat([]byte("text"), 1024)))
	good := proto.CloneOf(e.Batch(42))
	second := 0 // where record 1 begins
	{
		r := sampleRecords(bytes.Repeat([]byte("text"), 1024))[0]
		second = len(journal.AppendWire(nil, r.Header, r.Data))
	}
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	bomb := z.EncodeAll(make([]byte, 256<<20), nil)
	for _, tc := range []struct {
		name   string
		spoil  func(b *linkpb.Batch)
		record int
		offset int
		saying string
	}{
		{"data of the second record", func(b *linkpb.Batch) {
			b.Records[second+100] ^= 1
		}, 1, second, "batch 42: record 1 at byte "},
		{"header of the first", func(b *linkpb.Batch) { b.Records[9] ^= 1 }, 0, 0, "record 0 at byte 0"},
		{"cut off", func(b *linkpb.Batch) {
			b.Records = b.Records[:second+10]
			b.RawBytes = uint32(second + 10)
		}, 1, second, "cut off"},
		{"wrong length", func(b *linkpb.Batch) { b.RawBytes++ }, -1, 0, "batch 42: it has"},
		{"unknown codec", func(b *linkpb.Batch) { b.Codec = 9 }, -1, 0, "codec 9"},
		{"says too much", func(b *linkpb.Batch) { b.RawBytes = MaxBatchBytes + 1 }, -1, 0, "at most"},
		{"not zstd", func(b *linkpb.Batch) { b.Codec = linkpb.Codec_CODEC_ZSTD }, -1, 0, "zstd"},
		{"bomb that says too little", func(b *linkpb.Batch) {
			b.Codec, b.Records, b.RawBytes = linkpb.Codec_CODEC_ZSTD, bomb, 4096
		}, -1, 0, "zstd"},
		{"bomb that says nothing", func(b *linkpb.Batch) {
			b.Codec, b.Records, b.RawBytes = linkpb.Codec_CODEC_ZSTD, bomb, 0
		}, -1, 0, "zstd"},
		{"bomb that says the most", func(b *linkpb.Batch) {
			b.Codec, b.Records, b.RawBytes = linkpb.Codec_CODEC_ZSTD, bomb, MaxBatchBytes
		}, -1, 0, "zstd"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := proto.CloneOf(good)
			tc.spoil(b)
			d := &Decoder{}
			got, err := d.Decode(b)
			var be *BatchError
			if !errors.As(err, &be) || got != nil {
				t.Fatalf("%d records, error %v", len(got), err)
			}
			if be.Sequence != 42 || be.Record != tc.record || be.OffsetBytes != tc.offset ||
				!strings.Contains(err.Error(), tc.saying) {
				t.Errorf("error %q of %+v, want record %d at %d, saying %q", err, be, tc.record, tc.offset, tc.saying)
			}
			if cap(d.raw) > MaxBatchBytes {
				t.Errorf("the decoder took %d bytes", cap(d.raw))
			}
			if got, err := d.Decode(good); err != nil || len(got) != 4 {
				t.Errorf("the decoder is spoiled too: %v", err)
			}
		})
	}
	if _, err := new(Decoder).Decode(nil); err != nil {
		t.Errorf("no batch: %v", err)
	}
}

func FuzzDecodeBatch(f *testing.F) {
	for _, codec := range []linkpb.Codec{linkpb.Codec_CODEC_NONE, linkpb.Codec_CODEC_ZSTD} {
		e := newEncoder(f, codec)
		add(f, e, sampleRecords(bytes.Repeat([]byte("text"), 64)))
		b := e.Batch(1)
		f.Add(int32(b.Codec), bytes.Clone(b.Records), b.RawBytes)
	}
	f.Fuzz(func(t *testing.T, codec int32, records []byte, raw uint32) {
		got, err := new(Decoder).Decode(&linkpb.Batch{Sequence: 7, Codec: linkpb.Codec(codec), Records: records,
			RawBytes: raw})
		if err != nil {
			var be *BatchError
			if !errors.As(err, &be) || be.Sequence != 7 || be.Record < -1 || be.OffsetBytes > int(raw) {
				t.Fatalf("error %#v", err)
			}
			return
		}
		// What was accepted comes back the same.
		e := newEncoder(t, linkpb.Codec_CODEC_NONE)
		add(t, e, got)
		again, err := new(Decoder).Decode(e.Batch(8))
		if err != nil || !cmp.Equal(got, again, cmp.Comparer(bytes.Equal)) {
			t.Fatalf("not the same after another round: %v", err)
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	for _, codec := range []linkpb.Codec{linkpb.Codec_CODEC_NONE, linkpb.Codec_CODEC_ZSTD} {
		b.Run(codec.String(), func(b *testing.B) {
			e, r := newEncoder(b, codec), record(1, bytes.Repeat([]byte("some text"), 4096/9))
			b.SetBytes(256 * int64(len(r.Data)))
			b.ReportAllocs()
			for b.Loop() {
				for range 256 {
					e.Add(r.Header, r.Data)
				}
				e.Batch(1)
			}
		})
	}
}
