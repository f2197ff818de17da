package report

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"time"
)

// Benchmark is what critest measured of one operation.
type Benchmark struct {
	Operation            string
	Samples              int
	Median, P95, Longest time.Duration
}

// Benchmarks reads a file of critest's -benchmarking-output-dir.
func Benchmarks(r io.Reader) ([]Benchmark, error) {
	var data struct {
		Operations []string `json:"operationsNames"`
		Datapoints []struct {
			Durations []time.Duration `json:"operationsDurationsNs"`
		} `json:"datapoints"`
	}
	if err := json.NewDecoder(r).Decode(&data); err != nil {
		return nil, fmt.Errorf("read benchmark: %w", err)
	}
	var all []Benchmark
	for i, operation := range data.Operations {
		var took []time.Duration
		for _, d := range data.Datapoints {
			if i < len(d.Durations) {
				took = append(took, d.Durations[i])
			}
		}
		n := len(took)
		if n == 0 {
			return nil, fmt.Errorf("benchmark of %s has no samples", operation)
		}
		slices.Sort(took)
		all = append(all, Benchmark{
			Operation: operation, Samples: n,
			Median: took[n/2], P95: took[min(n*95/100, n-1)], Longest: took[n-1],
		})
	}
	return all, nil
}
