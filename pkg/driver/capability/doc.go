// Package capability says what a CSI volume capability means here: access modes, file system types, mount options, and
// sizes. It validates what a caller asks for and returns gRPC statuses with the code that CSI wants.
//
// It touches neither the node nor a pool. Everything is a function without state, safe for concurrent use.
package capability
