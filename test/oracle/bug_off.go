//go:build !slipstream_bugs

package main

import (
	"fmt"

	"github.com/slipstream-storage/slipstream/internal/bug"
)

func setBug(n bug.Name) error {
	return fmt.Errorf("fault %s: this build has none; run it with go run ./hack/faulty run ./test/oracle", n)
}
