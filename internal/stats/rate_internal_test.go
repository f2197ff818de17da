package stats

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"gantry/internal/pod"
)

func TestRates(t *testing.T) {
	type ask struct {
		at, usage time.Duration
		want      string // of nanoseconds of CPU a second; "-" is none
	}
	for rule, asks := range map[string][]ask{
		"the first reading has none":              {{0, time.Second, "-"}},
		"the second has that of the window":       {{0, time.Second, "-"}, {10 * time.Second, 6 * time.Second, "500000000"}},
		"two at once get one rate":                {{0, 0, "-"}, {2 * time.Second, time.Second, "500000000"}, {2*time.Second + 1, time.Second, "500000000"}},
		"a reading too soon has none of its own":  {{0, 0, "-"}, {time.Millisecond, 0, "-"}, {time.Second, time.Second, "1000000000"}},
		"another cgroup under the path begins":    {{0, time.Minute, "-"}, {10 * time.Second, time.Second, "-"}, {20 * time.Second, 2 * time.Second, "100000000"}},
		"an old reading says nothing about now":   {{0, 0, "-"}, {time.Hour, time.Minute, "-"}},
		"what used nothing has a rate of nothing": {{0, 5, "-"}, {10 * time.Second, 5, "0"}},
	} {
		t.Run(rule, func(t *testing.T) {
			r := rates{readings: make(map[string]reading)}
			for _, a := range asks {
				got := "-"
				if n := r.of("/c", time.Unix(1000, 0).Add(a.at), a.usage); n != nil {
					got = fmt.Sprint(*n)
				}
				if got != a.want {
					t.Errorf("after %v with %v used: %s, want %s", a.at, a.usage, got, a.want)
				}
			}
		})
	}
}

func TestRatesForgetWhatIsGone(t *testing.T) {
	r := rates{readings: make(map[string]reading)}
	for i := range 1000 {
		r.of(fmt.Sprint(i), time.Unix(int64(60*i), 0), 0)
	}
	if n := len(r.readings); n > 30 {
		t.Errorf("%d readings are kept of cgroups that nobody asks for", n)
	}
}

func TestParseInterfaces(t *testing.T) {
	const dev = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     200       2    0    0    0     0          0         0      200       2    0    0    0     0       0          0
  eth0:18446744073709551615 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16
eth0.5@x: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16
`
	want := []pod.InterfaceUsage{
		{Name: "eth0", RxBytes: 1<<64 - 1, RxPackets: 2, RxErrors: 3, RxDropped: 4, TxBytes: 9, TxPackets: 10, TxErrors: 11, TxDropped: 12},
		{Name: "eth0.5@x", RxBytes: 1, RxPackets: 2, RxErrors: 3, RxDropped: 4, TxBytes: 9, TxPackets: 10, TxErrors: 11, TxDropped: 12},
	}
	if d := cmp.Diff(want, parseInterfaces([]byte(dev))); d != "" {
		t.Error(d)
	}
	if many := parseInterfaces([]byte(strings.Repeat("e: 1\n", 10*maxInterfaces))); len(many) != maxInterfaces {
		t.Errorf("%d interfaces, want the bound", len(many))
	}
}

func TestStateOfATaskWhoseNameLies(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/stat", "7 (a) R b) S 1 7 7 0\n")
	if s := state(dir); s != 'S' {
		t.Errorf("state %q", s)
	}
	if s := state(t.TempDir()); s != 0 {
		t.Errorf("state %q of what is gone", s)
	}
}
