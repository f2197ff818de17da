package keeper_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	measure "gantry/internal/bench"
)

// BenchmarkLog lets a container write 200 MB to its output as fast as it can. The CPU time of the keeper until all of it
// is in the log, and of the container, is in seconds.
func BenchmarkLog(b *testing.B) {
	const size, head = 200_000_000, len("2006-01-02T15:04:05.99999Z stdout F ") // at least
	for _, line := range []int{100, 15_000} {
		b.Run(fmt.Sprintf("lines of %d bytes", line), func(b *testing.B) {
			k := newBench(b)
			text := bytes.Repeat(append(bytes.Repeat([]byte{'x'}, line-1), '\n'), size/line)
			if err := os.WriteFile(filepath.Join(k.shared(), "lines"), text, 0o600); err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(len(text)))
			var keeper, writer time.Duration
			for n := 0; b.Loop(); n++ {
				key := "writer" + strconv.Itoa(n)
				req := k.spec(key, container{args: []string{"/bin/cat", "/shared/lines"}})
				if _, err := k.Create(k.context(), req); err != nil {
					b.Fatal(err)
				}
				before := cpu(b, k.cgroup)
				if err := k.Start(k.context(), key); err != nil {
					b.Fatal(err)
				}
				k.eventually("whole log", func() bool {
					info, err := os.Stat(req.LogPath)
					return err == nil && info.Size() >= int64(size+size/line*head)
				})
				keeper += cpu(b, k.cgroup) - before
				k.exit(key)
				writer += cpu(b, k.cgroup+"-containers/"+key)
				if err := k.Delete(k.context(), key); err != nil {
					b.Fatal(err)
				}
				if err := os.Remove(req.LogPath); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(keeper.Seconds()/float64(b.N), "keeper-cpu-s/op")
			b.ReportMetric(writer.Seconds()/float64(b.N), "container-cpu-s/op")
		})
	}
}

// cpu is the CPU time that the processes of a cgroup have used.
func cpu(b *testing.B, path string) time.Duration {
	b.Helper()
	c, err := measure.OpenCgroup("/sys/fs/cgroup", path)
	if err != nil {
		b.Fatal(err)
	}
	used, err := c.CPU()
	if err != nil {
		b.Fatal(err)
	}
	return used
}
