package keeper_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"gantry/internal/crilog"
	"gantry/internal/keeper"
	"gantry/internal/labdocker"
)

// dockerBench is a keeper beside a Docker Engine that logs through it.
type dockerBench struct {
	*bench
	d      *labdocker.Daemon
	image  string
	socket string
}

func newDockerBench(t *testing.T, o labdocker.Options) *dockerBench {
	t.Helper()
	b := &dockerBench{bench: newBench(t), d: labdocker.Start(t, o)}
	b.socket = fmt.Sprintf("/run/docker/plugins/gantry-%s.sock", filepath.Base(filepath.Dir(b.state)))
	b.image = b.d.Busybox()
	return b
}

// eachEngine runs f with every Docker Engine.
func eachEngine(t *testing.T, o labdocker.Options, f func(t *testing.T, b *dockerBench)) {
	for _, v := range labdocker.Versions() {
		t.Run(string(v), func(t *testing.T) {
			o.Version = v
			f(t, newDockerBench(t, o))
		})
	}
}

// arguments of docker run for a container that logs through the keeper, whose log is path.
func (b *dockerBench) arguments(key string, more ...string) (args []string, path string) {
	b.t.Helper()
	path = filepath.Join(b.dir, key+".log")
	if err := b.OpenLog(b.context(), &keeper.Log{Key: key, LogPath: path, Socket: b.socket}); err != nil {
		b.t.Fatalf("open log: %v", err)
	}
	b.t.Cleanup(func() {
		if err := b.CloseLog(context.Background(), key); err != nil {
			b.t.Errorf("close log: %v", err)
		}
	})
	driver := strings.TrimSuffix(filepath.Base(b.socket), ".sock")
	args = []string{"run", "--name", key, "--network", "none", "--log-driver", driver, "--log-opt", keeper.LogKeyOption + "=" + key,
		"--volume", b.shared() + ":/shared"}
	return append(args, more...), path
}

// entries are those of a log, "<stream> <tag> <content>".
func entries(t *testing.T, path string) []string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for line := range strings.Lines(string(data)) {
		e, err := crilog.Parse([]byte(line))
		if err != nil {
			t.Fatalf("%v: %q", err, line)
		}
		tag := "F"
		if e.Partial {
			tag = "P"
		}
		all = append(all, fmt.Sprintf("%s %s %s", e.Stream, tag, e.Content))
	}
	return all
}

func TestDockerLogsInCRIFormat(t *testing.T) {
	eachEngine(t, labdocker.Options{}, func(t *testing.T, b *dockerBench) {
		script := `echo one; echo two >&2; printf '%s' three; exit 3`
		args, path := b.arguments("writer", b.image, "sh", "-c", script)
		out, _ := b.d.DockerCommand(t.Context(), args...).Output()
		if string(out) != "one\nthree" {
			t.Errorf("docker run shows %q", out)
		}
		got := entries(t, path)
		if len(got) != 3 || !strings.Contains(strings.Join(got, "\n"), "stderr F two") || !strings.Contains(strings.Join(got, "\n"), "stdout F one") ||
			!strings.Contains(strings.Join(got, "\n"), "stdout P three") {
			t.Errorf("log: %q", got)
		}
		if out := b.d.Docker("logs", "writer"); out != "one\nthree" {
			t.Errorf("docker logs shows %q", out)
		}
		if out := b.d.Docker("logs", "--tail", "1", "writer"); strings.Count(out, "\n") > 1 || out == "one\nthree" {
			t.Errorf("docker logs --tail 1 shows %q", out)
		}

		args, path = b.arguments("long", b.image, "sh", "-c", `head -c 40000 /dev/zero | tr '\0' x; echo; echo end`)
		b.d.Docker(args...)
		got = entries(t, path)
		if len(got) != 4 || got[0] != "stdout P "+strings.Repeat("x", 16384) || got[2] != "stdout F "+strings.Repeat("x", 40000-2*16384) || got[3] != "stdout F end" {
			t.Errorf("a line of 40000 bytes makes %d entries: %.50q", len(got), got)
		}
		if out := b.d.Docker("logs", "long"); out != strings.Repeat("x", 40000)+"\nend\n" {
			t.Errorf("docker logs of a long line: %d bytes", len(out))
		}

		args, path = b.arguments("terminal", "-t", b.image, "sh", "-c", `echo tty`)
		b.d.Docker(args...)
		if got = entries(t, path); len(got) != 1 || got[0] != "stdout F tty\r" {
			t.Errorf("a terminal's log: %q", got)
		}
	})
}

func TestDockerLogsFollow(t *testing.T) {
	eachEngine(t, labdocker.Options{}, func(t *testing.T, b *dockerBench) {
		args, path := b.arguments("talker", "-d", b.image, "sh", "-c", `echo first; while ! [ -e /shared/go ]; do sleep 0.1; done; echo last`)
		b.d.Docker(args...)
		b.eventually("first line", func() bool { return len(entries(t, path)) == 1 })
		cmd := b.d.DockerCommand(t.Context(), "logs", "-f", "talker")
		var out strings.Builder
		cmd.Stdout = &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		b.touch("go")
		if err := cmd.Wait(); err != nil || out.String() != "first\nlast\n" {
			t.Errorf("docker logs -f: %v, %q", err, out.String())
		}
	})
}

func TestDockerLogsSurviveAKilledWorker(t *testing.T) {
	eachEngine(t, labdocker.Options{}, func(t *testing.T, b *dockerBench) {
		check := &checker{t: t}
		args, path := b.arguments("writer", "-d", b.image, "sh", "-c", numbers)
		b.d.Docker(args...)
		n := kills(t)
		for i := range n {
			<-time.After(time.Duration(rand.IntN(20_000)) * time.Microsecond) // a random moment
			b.kill(b.worker)
			if i%20 == 19 {
				old := fmt.Sprintf("%s.%d", path, i)
				if err := os.Rename(path, old); err != nil {
					t.Fatal(err)
				}
				if err := b.ReopenLog(b.context(), "writer"); err != nil {
					t.Fatalf("reopen: %v", err)
				}
				check.file(old)
				if err := os.Remove(old); err != nil {
					t.Fatal(err)
				}
			}
		}
		b.touch("stop")
		if code := b.d.Docker("wait", "writer"); code != "7\n" {
			t.Errorf("exit code %q", code)
		}
		check.file(path)
		if check.next == 0 || check.next%20000 != 0 || len(check.line) > 0 {
			t.Errorf("the log ends after line %d and %q", check.next, check.line)
		}
		t.Logf("%d lines through %d kills", check.next, n)
	})
}

func TestDockerLogsSurviveAKilledHolder(t *testing.T) {
	b := newDockerBench(t, labdocker.Options{})
	check := &checker{t: t}
	args, path := b.arguments("writer", "-d", b.image, "sh", "-c", numbers)
	b.d.Docker(args...)
	for range 5 {
		b.kill(b.holder)
		b.eventually("a new holder", func() bool { return b.holder() > 0 })
		if _, err := b.List(b.context()); err != nil { // its worker has taken over
			t.Fatalf("list: %v", err)
		}
	}
	b.touch("stop")
	b.d.Docker("wait", "writer")
	check.file(path)
	if check.next == 0 || check.next%20000 != 0 || len(check.line) > 0 {
		t.Errorf("the log ends after line %d and %q", check.next, check.line)
	}
	args, _ = b.arguments("after", b.image, "echo", "hello")
	if out := b.d.Docker(args...); out != "hello\n" {
		t.Errorf("the next container says %q", out)
	}
}

func TestDockerLogsSayWhatADeadKeeperLost(t *testing.T) {
	eachEngine(t, labdocker.Options{}, func(t *testing.T, b *dockerBench) {
		args, path := b.arguments("writer", "-d", b.image, "sh", "-c", numbers)
		b.d.Docker(args...)
		for range 3 {
			b.killBoth()
			if _, err := b.List(b.context()); err != nil {
				t.Fatalf("a new keeper: %v", err)
			}
			before := b.size(path)
			b.eventually("more lines", func() bool { return b.size(path) > before })
		}
		b.touch("stop")
		b.d.Docker("wait", "writer")
		gaps, last := numbered(t, path)
		if len(gaps) != 3 || last%20000 != 0 {
			t.Errorf("%d notes of 3, last line %d", len(gaps), last)
		}
		t.Logf("%d lines, bytes missing after deaths: %v", last, gaps)
	})
}

// size of a file, 0 where there is none.
func (b *bench) size(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return info.Size()
}

// note is what a log says where something may be missing.
var note = regexp.MustCompile(`^stderr F gantry: .* may be missing here$`)

// numbered checks a log of numbered lines: whole lines in order, none twice; where some are missing or one
// is torn, the log says so. It returns how many bytes of the container's output are missing at each note.
func numbered(t *testing.T, path string) (gaps []int, last int) {
	t.Helper()
	// The first line behind a note may be the end of a number, which may look like a later one than it is:
	// what it is the end of is known by the line after it.
	const none, expected, met = 0, 1, 2
	line, first, rest := "", none, ""
	for _, e := range entries(t, path) {
		if note.MatchString(e) {
			gaps = append(gaps, 0)
			first, line = expected, ""
			continue
		}
		content, ok := strings.CutPrefix(e, "stdout ")
		if !ok {
			t.Fatalf("after line %d: %q", last, e)
		}
		line += content[2:]
		if content[0] == 'P' {
			continue
		}
		if first == expected {
			first, rest, line = met, line, ""
			continue
		}
		n, err := strconv.Atoi(line)
		if err == nil && first == met && n > last+1 && strings.HasSuffix(strconv.Itoa(n-1), rest) {
			for lost := last + 1; lost < n; lost++ {
				gaps[len(gaps)-1] += len(strconv.Itoa(lost)) + len("\n")
			}
			gaps[len(gaps)-1] -= len(rest) + len("\n")
			last = n - 1
		}
		if err != nil || n != last+1 {
			t.Fatalf("after line %d, note's first line %q, comes %q", last, rest, line)
		}
		last, first, rest, line = n, none, "", ""
	}
	return gaps, last
}

// readAhead is the most that dockerd may have read of a stream and not yet written to its plugin, in bytes;
// 20.10 and today's have the same constants. Its package bytespipe blocks a writer at 1e6 bytes
// (blockThreshold), but looks only before it adds a slice, which may hold 1e6 more (maxCap). Before it is
// the buffer of pools.Copy, 32 KiB, behind it that of logger.Copier, 16 KiB.
const readAhead = 1_000_000 + 1_000_000 + 32<<10 + 16<<10

func TestDockerLogsSayWhatADeadDaemonLost(t *testing.T) {
	for name, end := range map[string]func(d *labdocker.Daemon){
		"killed": (*labdocker.Daemon).Kill, "stopped": (*labdocker.Daemon).Stop,
	} {
		t.Run(name, func(t *testing.T) {
			eachEngine(t, labdocker.Options{LiveRestore: true}, func(t *testing.T, b *dockerBench) {
				args, path := b.arguments("writer", "-d", b.image, "sh", "-c", numbers)
				b.d.Docker(args...)
				for i := range 3 {
					before := b.size(path)
					b.eventually("more lines", func() bool { return b.size(path) > before+1<<20 })
					if i > 0 { // the keeper is so slow that dockerd is full
						b.stop()
						b.eventually("dockerd that reads no more", settled(func() string { return readBy(t, b.d.Pid()) }))
					}
					end(b.d)
					b.signal(syscall.SIGCONT)
					b.d.Restart()
				}
				before := b.size(path)
				b.eventually("more lines", func() bool { return b.size(path) > before })
				b.touch("stop")
				b.d.Docker("wait", "writer")
				gaps, last := numbered(t, path)
				if len(gaps) != 3 || last%20000 != 0 {
					t.Errorf("%d notes of 3, last line %d\n%s", len(gaps), last, b.d.LogTail())
				}
				for _, missing := range gaps {
					if missing > readAhead {
						t.Errorf("%d bytes are missing at a restart, of at most %d that dockerd reads ahead", missing, readAhead)
					}
				}
				t.Logf("%d lines, bytes missing at restarts: %v", last, gaps)
			})
		})
	}
}

// readBy is how much a process has read until now (proc_pid_io(5)).
func readBy(t *testing.T, pid int) string {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(data), "\n")
	return first
}

// settled says whether value has been the same a hundred times in a row.
func settled(value func() string) func() bool {
	last, times := "", 0
	return func() bool {
		now := value()
		if now != last {
			last, times = now, 0
		}
		times++
		return times >= 100
	}
}
