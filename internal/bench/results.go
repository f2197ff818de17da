package bench

import (
	"cmp"
	"slices"
	"sync"
	"time"
)

// Row is what one figure of one runtime was.
type Row struct {
	Case   string  `json:"case"`   // what was done
	Metric string  `json:"metric"` // what was measured of it
	Unit   string  `json:"unit"`
	Name   string  `json:"runtime"`
	N      int     `json:"samples"`
	Median float64 `json:"median"`
	Low    float64 `json:"low"`  // the tenth percentile
	High   float64 `json:"high"` // the ninetieth
}

type figure struct{ where, metric, unit, name string }

// Results collects samples. Its methods may be called from any goroutine.
type Results struct {
	mu     sync.Mutex
	order  []figure             // guarded by mu
	values map[figure][]float64 // guarded by mu
	notes  []string             // guarded by mu
}

// NewResults returns an empty collection.
func NewResults() *Results { return &Results{values: make(map[figure][]float64)} }

// Scope adds the samples of one case and one runtime.
type Scope struct {
	results     *Results
	where, name string
}

// Scope returns where samples of a case and a runtime go.
func (r *Results) Scope(where, name string) Scope { return Scope{r, where, name} }

// Add adds a sample.
func (s Scope) Add(metric, unit string, value float64) {
	s.results.mu.Lock()
	defer s.results.mu.Unlock()
	f := figure{s.where, metric, unit, s.name}
	if _, ok := s.results.values[f]; !ok {
		s.results.order = append(s.results.order, f)
	}
	s.results.values[f] = append(s.results.values[f], value)
}

// Took adds a duration in milliseconds.
func (s Scope) Took(metric string, d time.Duration) {
	s.Add(metric, "ms", float64(d)/float64(time.Millisecond))
}

// Note says of a case and a runtime what no figure says.
func (s Scope) Note(text string) { s.results.Note(s.name + ", " + s.where + ": " + text) }

// Note says of the results what no figure says.
func (r *Results) Note(text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.notes = append(r.notes, text)
}

// Notes returns what was noted.
func (r *Results) Notes() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.notes)
}

// Rows returns every figure, in the order in which they were first seen.
func (r *Results) Rows() []Row {
	r.mu.Lock()
	defer r.mu.Unlock()
	rows := make([]Row, 0, len(r.order))
	for _, f := range r.order {
		v := slices.Sorted(slices.Values(r.values[f]))
		rows = append(rows, Row{
			Case: f.where, Metric: f.metric, Unit: f.unit, Name: f.name, N: len(v),
			Median: percentile(v, 50), Low: percentile(v, 10), High: percentile(v, 90),
		})
	}
	return rows
}

// percentile of sorted values, between two of them in proportion; 0 of none.
func percentile(sorted []float64, p float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	at := p / 100 * float64(len(sorted)-1)
	i := int(at)
	if i+1 == len(sorted) {
		return sorted[i]
	}
	return sorted[i] + (at-float64(i))*(sorted[i+1]-sorted[i])
}

// unique returns what of returns for each row, without repetitions, in the rows' order.
func unique[K cmp.Ordered](rows []Row, of func(Row) K) []K {
	var all []K
	for _, r := range rows {
		if k := of(r); !slices.Contains(all, k) {
			all = append(all, k)
		}
	}
	return all
}
