// Package parameter parses the parameters of StorageClasses, VolumeAttributesClasses and snapshot classes into Go
// values, and refuses what is unknown or contradictory with a gRPC status that names the key and the nearest known one.
//
// It knows the keys and their meaning, and neither pools nor the replicator. Everything is a function without state,
// safe for concurrent use.
package parameter
