package bridge_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"gantry/internal/netns"
	"gantry/internal/pod"
)

// crowdSizes are how many pods there are when the next are measured. A benchmark that lasts longer than a
// few of them measures a larger crowd, and a bridge has 1023 ports at most: -benchtime 50x.
var crowdSizes = []int{10, 100, 500, 900}

// BenchmarkNthPod measures ADD beside other pods, which it does not look at. The CPU time is the whole
// machine's, so that what the kernel does behind counts too: nothing else should run.
func BenchmarkNthPod(b *testing.B) {
	n := newNode(b)
	add := func(p *testPod) error { return n.tryAdd(p) }
	growing(b, add)
}

// BenchmarkNthPort measures what the kernel alone takes for a pod's pair of links, one of them a port of a
// bridge, where nobody has an address.
func BenchmarkNthPort(b *testing.B) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "growing0"
	br := &netlink.Bridge{LinkAttrs: attrs}
	if err := netlink.LinkAdd(br); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = netlink.LinkDel(br) })
	count := 0
	growing(b, func(p *testPod) error {
		ns, err := os.Open(p.path)
		if err != nil {
			return err
		}
		defer func() { _ = ns.Close() }()
		count++
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MasterIndex = fmt.Sprintf("growing%d", count), br.Attrs().Index
		veth := netlink.NewVeth(attrs)
		veth.PeerName, veth.PeerNamespace = "eth0", netlink.NsFd(int(ns.Fd()))
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		return netlink.LinkSetUp(veth)
	})
}

// growing has pods added until there are as many as a size says, and measures those that come then.
func growing(b *testing.B, add func(*testPod) error) {
	dir := b.TempDir()
	count := 0
	made := func() *testPod {
		count++
		p := &testPod{netNS: &netNS{name: strconv.Itoa(count), path: filepath.Join(dir, strconv.Itoa(count))}, id: string(pod.NewKey())}
		if err := netns.Create(netns.Spec{Net: p.path}); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = netns.Remove(netns.Spec{Net: p.path}) })
		return p
	}
	for _, size := range crowdSizes {
		for count < size-1 {
			if err := add(made()); err != nil {
				b.Fatal(err)
			}
		}
		b.Run(strconv.Itoa(size), func(b *testing.B) {
			pods := make([]*testPod, b.N)
			for i := range pods {
				pods[i] = made()
			}
			took := make([]float64, b.N)
			before := machineCPU(b)
			b.ResetTimer()
			for i, p := range pods {
				began := time.Now()
				if err := add(p); err != nil {
					b.Fatal(err)
				}
				took[i] = float64(time.Since(began).Microseconds())
			}
			b.StopTimer()
			b.ReportMetric(float64(machineCPU(b)-before)/float64(b.N), "cpu-ms/op")
			slices.Sort(took)
			b.ReportMetric(took[b.N/10], "p10-µs/op") // as on a machine where nothing else runs
			b.ReportMetric(took[b.N/2], "p50-µs/op")
		})
	}
}

// machineCPU is how long the machine's processors have worked, in milliseconds (proc_stat(5)).
func machineCPU(b *testing.B) int {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		b.Fatal(err)
	}
	line, _, _ := strings.Cut(string(stat), "\n")
	const idle, iowait, hertz = 4, 5, 100
	ticks := 0
	for i, field := range strings.Fields(line) {
		if n, err := strconv.Atoi(field); err == nil && i != idle && i != iowait {
			ticks += n
		}
	}
	return ticks * 1000 / hertz
}
