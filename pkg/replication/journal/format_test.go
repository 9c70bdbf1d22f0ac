package journal

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"github.com/slipstream-storage/slipstream/internal/crc32c"
)

// The golden bytes are the format. A change here is a new format version.
func TestGoldenRecord(t *testing.T) {
	data := []byte("hello")
	d := diskHeader{Header: Header{Kind: KindWrite, Shard: 0x0102, Epoch: 0x03040506, Volume: 7,
		Ordinal: 0x1122334455667788, Offset: 4096,
		Length: 5, UnixNanos: 1e18, DurableOrdinal: 0x1122334455667780, DataCRC: DataCRC(data)}, prevCRC: 0xdeadbeef,
		flags: flagAllDurable}
	var b [recordHeaderBytes]byte
	d.encode(b[:], seed(0x5a5a, 9), 4096)
	want := "534c4a52" + "6c64cac2" + "ca1d61ac" + "efbeadde" + "8877665544332211" + "8077665544332211" +
		"0010000000000000" + "05000000" + "07000000" + "06050403" + "0201" + "01" + "01" + "000064a7b3b6e00d"
	got := hex.EncodeToString(b[:])
	if got != want {
		t.Errorf("record header\n got %s\nwant %s", got, want)
	}
	var back diskHeader
	if err := back.decode(b[:], seed(0x5a5a, 9), 4096); err != nil || back != d {
		t.Errorf("decoded %+v, %v, want %+v", back, err, d)
	}
	for name, err := range map[string]error{
		"other salt":     back.decode(b[:], seed(0x5a5b, 9), 4096),
		"other sequence": back.decode(b[:], seed(0x5a5a, 8), 4096),
		"other place":    back.decode(b[:], seed(0x5a5a, 9), 8192),
	} {
		if err == nil {
			t.Errorf("%s: verified", name)
		}
	}
}

func TestGoldenSegmentHeader(t *testing.T) {
	s := segmentHeader{shard: 3, group: [16]byte{0xaa}, timeline: [16]byte{0xbb}, sequence: 9, salt: 0x5a5a,
		firstOrdinal: 100,
		prev:         Position{8, 5120}, chain: 0xdeadbeef, durable: 98, durableEnd: Position{8, 4224}, segmentBytes: 1 << 20}
	b := make([]byte, segmentHeaderBytes)
	s.encode(b)
	want := "534c504a5345470a" + "01000000" + "0300" + "0000" + "aa" + strings.Repeat("00",
		15) + "bb" + strings.Repeat("00", 15) +
		"0900000000000000" + "5a5a000000000000" + "6400000000000000" + "0800000000000000" + "0014000000000000" +
		"efbeadde" + "000000006200000000000000" + "0000100000000000" + "0800000000000000" + "8010000000000000" +
		strings.Repeat("00", 508-128) + "e8c82205"
	got := hex.EncodeToString(b[:segmentHeaderFields])
	if got != want {
		t.Errorf("segment header\n got %s\nwant %s", got, want)
	}
	if !bytes.Equal(b[segmentHeaderCopyAt:][:segmentHeaderFields], b[:segmentHeaderFields]) {
		t.Error("the copy differs")
	}
	var back segmentHeader
	if err := back.decode(b); err != nil || back != s {
		t.Errorf("decoded %+v, %v", back, err)
	}
}

func TestWire(t *testing.T) {
	data := []byte("some data")
	h := Header{Kind: KindExtent, Ordinal: 7, Length: 9, Volume: 2, DataCRC: DataCRC(data), UnixNanos: -1}
	b := AppendWire(nil, h, data)
	if len(b) != recordHeaderBytes+len(data) {
		t.Fatalf("%d bytes", len(b))
	}
	h2 := Header{Kind: KindHole, Ordinal: 7, Length: 1 << 31, Offset: 1 << 40}
	b = AppendWire(b, h2, nil)
	got, gotData, rest, err := DecodeWire(b)
	if err != nil || got != h || !bytes.Equal(gotData, data) {
		t.Fatalf("%+v %q %v", got, gotData, err)
	}
	if got, gotData, rest, err = DecodeWire(rest); err != nil || got != h2 || len(gotData) != 0 || len(rest) != 0 {
		t.Fatalf("%+v %q %d %v", got, gotData, len(rest), err)
	}
	for i := range b[:recordHeaderBytes+len(data)] {
		for bit := range 8 {
			c := bytes.Clone(b)
			c[i] ^= 1 << bit
			if _, _, _, err := DecodeWire(c); err == nil {
				t.Errorf("byte %d bit %d flipped: decoded", i, bit)
			}
		}
	}
	for i := range recordHeaderBytes + len(data) {
		if _, _, _, err := DecodeWire(b[:i]); err == nil {
			t.Errorf("cut at %d: decoded", i)
		}
	}
	bad := []Header{
		{Kind: 0}, {Kind: KindEpoch + 1}, {Kind: KindWrite, Length: MaxDataBytes + 1}, {Kind: KindZero, Offset: -1},
		{Kind: KindZero, Offset: 1<<63 - 1, Length: 1}, {Kind: KindZero, DataCRC: 1},
	}
	for _, h := range bad {
		if _, _, _, err := DecodeWire(AppendWire(nil, h, nil)); err == nil {
			t.Errorf("%+v: decoded", h)
		}
	}
	if _, _, _, err := DecodeWire(AppendWire(nil, Header{Kind: KindWrite, Length: 1, DataCRC: 5}, []byte{
		1})); !errors.Is(err, ErrDataCRC) {
		t.Errorf("wrong data: %v", err)
	}
}

// Sectors that end in a CRC-32C of their own have one CRC-32C. The data checksum tells them apart.
func TestDataCRCSeesSectorsWithTheirOwnCRC(t *testing.T) {
	sector := func(fill byte) []byte {
		s := bytes.Repeat([]byte{fill}, 512)
		binary.LittleEndian.PutUint32(s[508:], crc32c.Sum(s[:508]))
		return s
	}
	a, b := sector('a'), sector('b')
	if crc32c.Sum(a) != crc32c.Sum(b) {
		t.Fatal("the sectors are not the kind that CRC-32C cannot tell apart")
	}
	whole := append(bytes.Clone(a), a...)
	torn := append(bytes.Clone(a), b...)
	if DataCRC(whole) == DataCRC(torn) {
		t.Error("a torn record of such sectors has the checksum of the whole one")
	}
}
