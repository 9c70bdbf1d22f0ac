package replication

import (
	"errors"
	"fmt"
	"io"

	"github.com/zeebo/xxh3"

	"github.com/slipstream-storage/slipstream/internal/words"
	"github.com/slipstream-storage/slipstream/pkg/replication/changemap"
	"github.com/slipstream-storage/slipstream/pkg/vfs"
)

// A comparison hashes extents of 64 KiB with XXH3-128. The hash finds damage, not forgery: both sites hold the data
// anyway, and who could choose colliding contents would still need a way to put one at each site. It takes a tenth of
// the processor time of a cryptographic hash, which applications on the same machine get.
const (
	hashBytes = 16
	// verifyRunExtents is how much one step compares: 8 MiB.
	verifyRunExtents = 128
)

// extentHash is that of an extent. An extent of zeros has the zero hash, whether it is a hole or not.
type extentHash [hashBytes]byte

func hashOf(p []byte) extentHash {
	if vfs.AllZero(p) {
		return extentHash{}
	}
	h := xxh3.Hash128(p).Bytes()
	return h
}

// digestOf is one hash for a run of extents.
func digestOf(hashes []extentHash) extentHash {
	h := xxh3.New()
	for i := range hashes {
		_, _ = h.Write(hashes[i][:]) // never fails
	}
	return h.Sum128().Bytes()
}

// extentsOf is how many extents a size has.
func extentsOf(sizeBytes int64) uint64 {
	return uint64(sizeBytes+changemap.ExtentBytes-1) / changemap.ExtentBytes
}

// hashRun hashes count extents of a preserved image, and returns how many bytes it had to read. Holes are not read.
func hashRun(image *preservedImage, first, count uint64, buf []byte) (hashes []extentHash, read int64, err error) {
	hashes = make([]extentHash, count)
	end := min(int64(first+count)*changemap.ExtentBytes, image.Size())
	for off := int64(first) * changemap.ExtentBytes; off < end; {
		start, _, err := image.NextData(off)
		if errors.Is(err, io.EOF) || err == nil && start >= end {
			break
		}
		if err != nil {
			return nil, read, fmt.Errorf("volume %s: find data after %d: %w", image.member.VolumeID, off, err)
		}
		extent := uint64(max(start, off)) / changemap.ExtentBytes
		p, err := readExtent(image, extent, buf)
		if err != nil {
			return nil, read, err
		}
		read += int64(len(p))
		hashes[extent-first] = hashOf(p)
		off = int64(extent+1) * changemap.ExtentBytes
	}
	return hashes, read, nil
}

// readExtent reads one extent into buf; the last one of an image may be shorter.
func readExtent(image *preservedImage, extent uint64, buf []byte) ([]byte, error) {
	off := int64(extent) * changemap.ExtentBytes
	p := buf[:min(changemap.ExtentBytes, image.Size()-off)]
	_, err := image.ReadAt(p, off)
	return p, err
}

// memberImage is the image of a member of a preserved set by its index; nil for none.
func memberImage(set *preserved, index uint32) *preservedImage {
	for _, image := range set.images {
		if image.member.Index == index {
			return image
		}
	}
	return nil
}

// packHashes is the form of hashes in a message.
func packHashes(hashes []extentHash) []byte {
	data := make([]byte, 0, len(hashes)*hashBytes)
	for i := range hashes {
		data = append(data, hashes[i][:]...)
	}
	return data
}

// unpackHashes reads hashes of a peer, of which there must be count.
func unpackHashes(data []byte, count uint64) ([]extentHash, error) {
	if uint64(len(data)) != count*hashBytes {
		return nil, fmt.Errorf("%w: %s of hashes for %s", ErrInvalid, words.Count(len(data), "byte"),
			words.Count(count, "extent"))
	}
	hashes := make([]extentHash, count)
	for i := range hashes {
		copy(hashes[i][:], data[i*hashBytes:])
	}
	return hashes, nil
}
