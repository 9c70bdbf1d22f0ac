//go:build !race

package testenv

// Race says that the race detector is on, under which everything takes several times as long.
const Race = false
