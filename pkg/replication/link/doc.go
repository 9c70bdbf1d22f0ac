// Package link is what two sites say to each other: one gRPC stream for each consistency group and direction, over
// mutual TLS, with the messages of pkg/api/linkpb.
//
// # Roles
//
// The primary dials (Dialer, Client) and has the Stream; the secondary listens (Server) and has the PeerStream, handed
// to its Handler. One connection carries the streams of all groups between two sites. When to dial again is the
// caller's decision, for which Backoff has the times.
//
// # Order and loss
//
// Messages of a stream arrive in order, each at most once. When a stream ends by anything but an orderly close, any
// number of the last messages in each direction may be lost; nothing is sent again, the next stream starts with what
// the two sides then say of their journals. A Send that returned nil says nothing about arrival: only an Ack does.
//
// # Flow control
//
// Each stream has gRPC's window of its own (8 MiB): a secondary that does not receive stops that group's Send and no
// other's, for gRPC gives the connection's window back on receipt, not when the application reads. Only the
// goroutine that ships waits there; an application's write never does.
//
// A link that is dead without saying so is noticed within about ten seconds: by TCP, which gives data that is not
// acknowledged 8 s (heartbeats mean there always is some), and by pings from the listening side. The other side's pings
// come after 10 s without traffic, the shortest that gRPC allows.
//
// # Identity, and what is checked
//
// A site's name is a DNS name in its certificate. The dialing side requires a certificate for the peer's name,
// whatever the address it dialed. The listening side requires a certificate of the authority with exactly one name out
// of Peers(); others get PermissionDenied and a line in the log. Both sides check validity and purpose at each
// handshake, with the files as they are then (pkg/tlsfiles). No name is ever taken from a message.
//
// Not checked here: whether the peer may touch the group that it names, which is the Handler's to do with Peer(), and
// whose answer to a stranger is RefuseForeign; whether records continue the journal; revocation. A peer that leaves
// Peers(), or whose certificate expires, keeps the streams it has until they end.
//
// Plain text exists for trying things out on one machine: with Insecure on both sides, both refuse every address that
// is not loopback. The name is then what the peer says it is, in gRPC metadata.
//
// # Batches
//
// Encoder and Decoder turn journal records into Batch messages and back. A batch is a run of records in the journal's
// wire encoding, as a whole compressed with zstd where that makes it smaller. Everything about it is checked, sizes
// before anything is allocated by them.
//
// # Testing
//
// Pipe and Network have the same contract in memory, where a cut happens at an exact place; linktest has a TCP proxy
// that delays, throttles and cuts the real thing.
package link
