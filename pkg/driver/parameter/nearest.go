package parameter

import (
	"math"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func unknownKey(key, nearest string) error {
	return status.Errorf(codes.InvalidArgument, "unknown parameter %q: did you mean %q?", key, nearest)
}

func ownKeys() []string {
	keys := make([]string, len(Specs))
	for i, spec := range Specs {
		keys[i] = spec.Key
	}
	return keys
}

// nearestKey returns the known key with the smallest edit distance to key, the first of several, and the distance.
func nearestKey(key string, known []string) (nearest string, distance int) {
	distance = math.MaxInt
	for _, candidate := range known {
		if d := editDistance(key, candidate); d < distance {
			nearest, distance = candidate, d
		}
	}
	return nearest, distance
}

// editDistance is the Levenshtein distance in bytes.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			substitute := diagonal
			if a[i] != b[j] {
				substitute++
			}
			diagonal = row[j+1]
			row[j+1] = min(substitute, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
