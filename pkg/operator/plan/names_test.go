package plan

import (
	"strings"
	"testing"
)

// TestNamespaceAgain: a namespace that is made anew gets a group of its own.
func TestNamespaceAgain(t *testing.T) {
	a := engineGroupName("shop", "uid-1", "shop", "a")
	if b := engineGroupName("shop", "uid-2", "shop", "a"); a == b {
		t.Errorf("%s twice", a)
	}
	long := engineGroupName(strings.Repeat("n", 63), "uid", strings.Repeat("g", 63), "a")
	if len(long) > maxGroupName || !strings.HasPrefix(a, "shop-") {
		t.Errorf("names %s, %s", a, long)
	}
	if engineGroupName("a", "u", "b.c", "n") == engineGroupName("a.b", "u", "c", "n") {
		t.Error("two groups have one name")
	}
}
