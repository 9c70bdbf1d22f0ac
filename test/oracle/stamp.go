package main

import (
	"encoding/binary"
	"fmt"

	"github.com/slipstream-storage/slipstream/internal/crc32c"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

const (
	blockBytes  = 4096
	sectorBytes = 512
	// sectorsPerBlock is how many units of a block a real disk may write apart from each other.
	sectorsPerBlock = blockBytes / sectorBytes
)

// Layout of each sector of a stamped block, little endian:
//
//	 0  u32  magic "SLPO"
//	 4  u16  writer
//	 6  u16  volume, its number in the round
//	 8  u32  block address in the volume
//	12  u32  sector in the block
//	16  u64  round
//	24  u64  operation: its number in the round, never used twice
//	32  u64  clock when the write was issued
//	40  ...  the operation's number again and again
//	508 u32  CRC-32C of bytes 0 to 508, masked
//
// The mask is RocksDB's, and for its reason: bytes that end with their own CRC are invisible to an outer CRC with the
// same polynomial. Unmasked, all stamped blocks would have one and the same CRC-32C, and the journal could not tell a
// torn record of them from a whole one.
//
// Every sector stands for itself, because a power loss or a cut between two versions of a page may leave some of a
// block's sectors new and others old; within a sector there is no such excuse.
const (
	stampMagic    = 0x4f504c53 // "SLPO"
	stampFill     = 40
	stampCRC      = sectorBytes - 4
	stampWordSize = 8
)

func sectorChecksum(s []byte) uint32 {
	crc := crc32c.Sum(s[:stampCRC])
	return (crc>>15 | crc<<17) + 0xa282ead8
}

// stamp fills the blocks that a write covers; p has op.n blocks.
func stamp(p []byte, round uint64, o *op) {
	le := binary.LittleEndian
	for off := 0; off < len(p); off += sectorBytes {
		s := p[off : off+sectorBytes]
		le.PutUint32(s[0:], stampMagic)
		le.PutUint16(s[4:], uint16(o.writer))
		le.PutUint16(s[6:], uint16(o.volume))
		le.PutUint32(s[8:], uint32(o.block+off/blockBytes))
		le.PutUint32(s[12:], uint32(off%blockBytes/sectorBytes))
		le.PutUint64(s[16:], round)
		le.PutUint64(s[24:], o.id)
		le.PutUint64(s[32:], o.issued)
		for i := stampFill; i+stampWordSize <= stampCRC; i += stampWordSize {
			le.PutUint64(s[i:], o.id)
		}
		le.PutUint32(s[stampCRC-4:], 0)
		le.PutUint32(s[stampCRC:], sectorChecksum(s))
	}
}

// readStamp returns the operation that wrote a sector, 0 for zeros. An error says why the sector is none that the round
// wrote to this place.
func readStamp(s []byte, round uint64, volume, block, sector int) (id uint64, err error) {
	le := binary.LittleEndian
	if le.Uint32(s) == 0 && vfs.AllZero(s) {
		return 0, nil
	}
	if got, want := le.Uint32(s[stampCRC:]), sectorChecksum(s); got != want || le.Uint32(s) != stampMagic {
		return 0, fmt.Errorf(
			"volume %d, block %d, sector %d is no stamped sector (checksum %#x, content has %#x, begins with % x)",
			volume, block, sector, got, want, s[:stampFill])
	}
	if v, b, n, r := le.Uint16(s[6:]), le.Uint32(s[8:]), le.Uint32(s[12:]),
		le.Uint64(s[16:]); int(v) != volume || int(b) != block ||
		int(n) != sector || r != round {
		return 0, fmt.Errorf(
			"volume %d, block %d, sector %d of round %d holds what was written to volume %d, block %d, sector %d in round %d",
			volume, block, sector, round, v, b, n, r)
	}
	return le.Uint64(s[24:]), nil
}
