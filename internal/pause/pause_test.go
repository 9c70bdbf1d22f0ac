package pause

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

func TestFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		began := time.Now()
		for i, want := range []bool{true, true, false, false} {
			if got := For(ctx, 1200*time.Millisecond); got != want {
				t.Errorf("pause %d: %t, want %t", i, got, want)
			}
		}
		if waited := time.Since(began); waited != 3*time.Second {
			t.Errorf("waited %v, want no longer than the context", waited)
		}
	})
}
