package main

import (
	"math"
	"slices"
)

// quantile of values by the nearest rank; NaN of nothing. It does not change its argument.
func quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Clone(values)
	slices.Sort(sorted)
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

// median of values, the mean of the two in the middle where their number is even; NaN of nothing.
func median(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Clone(values)
	slices.Sort(sorted)
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}

// spread is the smallest and the largest value.
func spread(values []float64) (low, high float64) {
	if len(values) == 0 {
		return math.NaN(), math.NaN()
	}
	return slices.Min(values), slices.Max(values)
}

// ratios divides measurements by the baseline's of the same round. A round that lacks one of the two, or whose baseline
// is zero, has no ratio.
func ratios(values, baseline map[int]float64) []float64 {
	var rounds []int
	for round := range values {
		if baseline[round] > 0 {
			rounds = append(rounds, round)
		}
	}
	slices.Sort(rounds)
	quotients := make([]float64, 0, len(rounds))
	for _, round := range rounds {
		quotients = append(quotients, values[round]/baseline[round])
	}
	return quotients
}
