//go:build slipstream_bugs

package main

import "github.com/slipstream-storage/slipstream/internal/bug"

func setBug(n bug.Name) error {
	bug.Set(n)
	faulty.Store(n != "")
	return nil
}
