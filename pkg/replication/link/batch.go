package link

import (
	"errors"
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/slipstream-storage/slipstream/pkg/api/linkpb"
	"github.com/slipstream-storage/slipstream/pkg/replication/journal"
)

// MaxBatchBytes bounds the records of a batch, uncompressed. It has room for a record of the largest size behind a
// batch that is good for latency; what a receiver may have to hold for each stream is bounded by it.
const MaxBatchBytes = 6 << 20

// BatchError says where a batch is wrong. The stream cannot go on behind it: the records are in order, and one is
// missing.
type BatchError struct {
	// Sequence is the batch's.
	Sequence uint64
	// Record is the index of the record in the batch, -1 where it is the batch as a whole.
	Record int
	// OffsetBytes is where the record begins in the uncompressed batch.
	OffsetBytes int
	Err         error
}

func (e *BatchError) Error() string {
	if e.Record < 0 {
		return fmt.Sprintf("batch %d: %v", e.Sequence, e.Err)
	}
	return fmt.Sprintf("batch %d: record %d at byte %d: %v", e.Sequence, e.Record, e.OffsetBytes, e.Err)
}

func (e *BatchError) Unwrap() error { return e.Err }

// Encoder collects records to batches. It reuses its memory and is not safe for concurrent use. Use NewEncoder.
type Encoder struct {
	zstd       *zstd.Encoder // nil: no compression
	raw        []byte
	compressed []byte
}

// Codec is how batches are compressed.
type Codec = linkpb.Codec

// NewEncoder returns an encoder that compresses with the codec, or that does not.
func NewEncoder(codec Codec) (*Encoder, error) {
	e := &Encoder{}
	switch codec {
	case linkpb.Codec_CODEC_NONE:
	case linkpb.Codec_CODEC_ZSTD:
		// One goroutine's worth: the primary's processors belong to the application.
		z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
		if err != nil {
			return nil, fmt.Errorf("zstd: %w", err)
		}
		e.zstd = z
	default:
		return nil, fmt.Errorf("codec %v is not known", codec)
	}
	return e, nil
}

// Add appends a record; data is copied. It reports false, and adds nothing, when the batch would exceed MaxBatchBytes:
// take the batch first. Into an empty batch every record goes whose data is at most journal.MaxDataBytes.
func (e *Encoder) Add(h journal.Header, data []byte) bool {
	// Looked at before the copy, which could be long; exactly, after it.
	if len(data) > MaxBatchBytes-len(e.raw) {
		return false
	}
	raw := journal.AppendWire(e.raw, h, data)
	if len(raw) > MaxBatchBytes {
		return false
	}
	e.raw = raw
	return true
}

// RawBytes returns the encoded size of the records since the last Batch, before compression.
func (e *Encoder) RawBytes() int { return len(e.raw) }

// Batch returns the records added since the last call as a batch and begins the next one. The batch uses the encoder's
// memory: it is valid until the next Add, so Send it first.
func (e *Encoder) Batch(sequence uint64) *linkpb.Batch {
	b := &linkpb.Batch{Sequence: sequence, Codec: linkpb.Codec_CODEC_NONE, Records: e.raw, RawBytes: uint32(len(e.raw))}
	if e.zstd != nil {
		e.compressed = e.zstd.EncodeAll(e.raw, e.compressed[:0])
		if len(e.compressed) < len(e.raw) {
			b.Codec, b.Records = linkpb.Codec_CODEC_ZSTD, e.compressed
		}
	}
	e.raw = e.raw[:0]
	return b
}

// Record is one record of a batch.
type Record struct {
	Header journal.Header
	Data   []byte
}

// Decoder reads batches. It reuses its memory and is not safe for concurrent use. The zero Decoder is ready.
type Decoder struct {
	raw     []byte
	records []Record
}

// unzstd may be used by several goroutines at once. The limits are the second line: Decode has looked at raw_bytes
// before.
var unzstd = sync.OnceValues(func() (*zstd.Decoder, error) {
	return zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecodeAllCapLimit(true),
		zstd.WithDecoderMaxMemory(MaxBatchBytes), zstd.WithDecoderMaxWindow(MaxBatchBytes))
})

// Decode returns the records of a batch, each with its header and data verified against their checksums. Records and
// data are valid until the next Decode, and as long as b is not changed. Errors are *BatchError, and there are no
// records then.
func (d *Decoder) Decode(b *linkpb.Batch) ([]Record, error) {
	fail := func(format string, args ...any) ([]Record, error) {
		return nil, &BatchError{Sequence: b.GetSequence(), Record: -1, Err: fmt.Errorf(format, args...)}
	}
	if b.GetRawBytes() > MaxBatchBytes {
		return fail("it says that it has %d bytes uncompressed, at most %d are allowed", b.GetRawBytes(), MaxBatchBytes)
	}
	raw := b.GetRecords()
	switch b.GetCodec() {
	case linkpb.Codec_CODEC_NONE:
	case linkpb.Codec_CODEC_ZSTD:
		z, err := unzstd()
		if err != nil {
			return fail("zstd: %w", err)
		}
		if cap(d.raw) < int(b.GetRawBytes()) {
			d.raw = make([]byte, 0, b.GetRawBytes())
		}
		// The decoder writes up to the capacity and no further.
		if raw, err = z.DecodeAll(raw, d.raw[:0:b.GetRawBytes()]); err != nil {
			return fail("zstd: %w", err)
		}
	default:
		return fail("codec %d is not known", b.GetCodec())
	}
	if len(raw) != int(b.GetRawBytes()) {
		return fail("it has %d bytes uncompressed and says %d", len(raw), b.GetRawBytes())
	}
	d.records = d.records[:0]
	for rest := raw; len(rest) > 0; {
		h, data, next, err := journal.DecodeWire(rest)
		if err == nil && len(next) >= len(rest) {
			err = errors.New("it has no length")
		}
		if err != nil {
			return nil, &BatchError{b.GetSequence(), len(d.records), len(raw) - len(rest), err}
		}
		d.records = append(d.records, Record{h, data})
		rest = next
	}
	return d.records, nil
}
