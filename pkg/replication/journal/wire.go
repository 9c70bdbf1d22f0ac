package journal

import "fmt"

// AppendWire appends a record as the link carries it, and returns the extended slice: the header as on disk, with salt,
// sequence, offset and chain 0, then the data without padding. h.Length must be len(data) if the kind has data, and
// h.DataCRC its checksum, as Append and Cursor return them.
func AppendWire(dst []byte, h Header, data []byte) []byte {
	var b [recordHeaderBytes]byte
	d := diskHeader{Header: h}
	d.encode(b[:], wireSeed, 0)
	dst = append(dst, b[:]...)
	return append(dst, data...)
}

var wireSeed = seed(0, 0)

// DecodeWire decodes the first record in b. data aliases b, rest is what follows the record. The header, its checksum
// and the data's checksum were verified; whether the record continues a stream is AppendCopies' to say.
func DecodeWire(b []byte) (h Header, data, rest []byte, err error) {
	if len(b) < recordHeaderBytes {
		return Header{}, nil, b, fmt.Errorf("journal: record cut off: %d bytes, a header has %d", len(b), recordHeaderBytes)
	}
	var d diskHeader
	if err := d.decode(b, wireSeed, 0); err != nil {
		return Header{}, nil, b, fmt.Errorf("journal: record from the link: %w", err)
	}
	if d.flags != 0 || d.prevCRC != 0 {
		return Header{}, nil, b, fmt.Errorf("journal: record from the link: flags %#x and chain %#x must be 0", d.flags,
			d.prevCRC)
	}
	n := d.dataBytes()
	if int64(len(b)-recordHeaderBytes) < n {
		return Header{}, nil, b, fmt.Errorf("journal: record %d cut off: %d bytes of data, its header says %d",
			d.Ordinal, len(b)-recordHeaderBytes, n)
	}
	data = b[recordHeaderBytes : recordHeaderBytes+n : recordHeaderBytes+n]
	if DataCRC(data) != d.DataCRC {
		return Header{}, nil, b, fmt.Errorf("%w: record %d from the link", ErrDataCRC, d.Ordinal)
	}
	return d.Header, data, b[recordHeaderBytes+n:], nil
}
