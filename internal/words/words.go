// Package words writes numbers with their nouns and verbs in messages for people. It has no state.
package words

import (
	"fmt"
	"strings"
)

// Integer is what can be counted.
type Integer interface {
	~int | ~int8 | ~int16 | ~int32 | ~int64 | ~uint | ~uint8 | ~uint16 | ~uint32 | ~uint64
}

// Count returns a number and its noun: "1 volume", "2 volumes". The noun is in the singular and may have words before
// it: "lost order".
func Count[N Integer](n N, noun string) string {
	return fmt.Sprintf("%d %s", n, Plural(n, noun))
}

// Plural returns the noun alone, as it stands behind the number n.
func Plural[N Integer](n N, noun string) string {
	if n == 1 {
		return noun
	}
	for _, ending := range []string{"s", "x", "z", "ch", "sh"} {
		if strings.HasSuffix(noun, ending) {
			return noun + "es"
		}
	}
	if stem, found := strings.CutSuffix(noun, "y"); found && !strings.HasSuffix(stem, "e") {
		return stem + "ies" // copy, entry; the words in use have no other vowel before the y
	}
	return noun + "s"
}

// Choose returns the word that agrees with the number n: Choose(n, "is", "are").
func Choose[N Integer](n N, one, other string) string {
	if n == 1 {
		return one
	}
	return other
}
