// Package crc32c computes the checksum of everything that Slipstream writes to disk: CRC-32 with Castagnoli's
// polynomial.
//
// It is not a check against forgery. All functions are safe for concurrent use.
package crc32c

import "hash/crc32"

// Table is Castagnoli's table, for hash/crc32 and for code that continues a checksum byte by byte. Read only.
var Table = crc32.MakeTable(crc32.Castagnoli)

// Sum returns the checksum of p.
func Sum(p []byte) uint32 { return crc32.Checksum(p, Table) }

// Update returns the checksum of what crc is the checksum of, followed by p.
func Update(crc uint32, p []byte) uint32 { return crc32.Update(crc, Table, p) }
