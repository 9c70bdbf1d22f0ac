package vfs

import "testing"

func TestAllZero(t *testing.T) {
	for _, n := range []int{0, 1, 4095, 4096, 4097, 12345} {
		p := make([]byte, n)
		if !AllZero(p) {
			t.Errorf("%d zeros", n)
		}
		for i := range p {
			p[i] = 1
			if AllZero(p) {
				t.Errorf("%d bytes with one at %d", n, i)
			}
			p[i] = 0
		}
	}
}
