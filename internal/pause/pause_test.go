package pause

import (
	"context"
	"errors"
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

func TestPoll(t *testing.T) {
	again, other := errors.New("again"), errors.New("other")
	for _, test := range []struct {
		name  string
		tries []error // the last one repeats
		want  error
	}{
		{"at once", []error{nil}, nil},
		{"later", []error{again, again, nil}, nil},
		{"another error", []error{again, other, nil}, other},
		{"too late", []error{again}, again},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := 0
				err := Poll(time.Second, func(err error) bool { return err == again }, func() error {
					n++
					return test.tries[min(n, len(test.tries))-1]
				})
				if err != test.want || n < len(test.tries) && err != other {
					t.Errorf("%v after %d tries, want %v", err, n, test.want)
				}
			})
		})
	}
}
