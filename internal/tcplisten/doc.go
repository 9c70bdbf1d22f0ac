// Package tcplisten bounds what the callers of a TCP port can take of a process, before anything is known about them.
// Every port of the project's programs is wrapped in it: the link of replicators and gateways, the driver's port for
// the controller, metrics.
//
// A connection is waiting until its server admits it: because the caller has shown a certificate that
// may call. Waiting ones are bounded in number and time, admitted ones in number. Both bounds are small parts of the
// process's file descriptors (package descriptors); the rest belongs to the data path.
//
//	accept -> waiting --Admit--> admitted --Close--> gone
//	             \--crowded out, or silent for Patience--> gone
//
// Where a new connection finds too many waiting, the oldest one of the address that has the most of them goes. So a
// flood from one address crowds out itself, and others still get in. An address is an IPv4 address or an IPv6 network
// of 64 bits. A flood from many addresses crowds out the oldest connection of all: who finishes its handshake before as
// many others have come gets in.
//
// The package decides nothing about who may call. It does not bound what an admitted caller sends.
//
// # Concurrency
//
// All methods may be called concurrently.
package tcplisten
