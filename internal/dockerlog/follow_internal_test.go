package dockerlog

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"gantry/internal/crilog"
)

// breaking is the API of a dockerd that breaks off the first stream of a container that has ended.
type breaking struct {
	log     []byte
	first   int   // bytes of it in the first stream
	why     error // io.EOF: dockerd went down in good order
	streams int
}

func (*breaking) DaemonHost() string { return "" }

func (*breaking) ContainerInspect(context.Context, string, client.ContainerInspectOptions) (client.ContainerInspectResult, error) {
	return client.ContainerInspectResult{Container: container.InspectResponse{
		Config: &container.Config{}, State: &container.State{Status: container.StateExited},
	}}, nil
}

func (b *breaking) ContainerLogs(context.Context, string, client.ContainerLogsOptions) (client.ContainerLogsResult, error) {
	if b.streams++; b.streams > 1 {
		return io.NopCloser(bytes.NewReader(b.log)), nil
	}
	return io.NopCloser(io.MultiReader(bytes.NewReader(b.log[:b.first]), broken{b.why})), nil
}

type broken struct{ err error }

func (b broken) Read([]byte) (int, error) { return 0, b.err }

func TestLogOfAnEndedContainerIsWholeWhenDockerBreaksItOff(t *testing.T) {
	var log []byte
	ends := []int{0}
	for _, line := range []string{"2026-03-04T05:06:07.000000001Z one\n", "2026-03-04T05:06:07.000000002Z two\n"} {
		log = append(log, 1, 0, 0, 0)
		log = append(binary.BigEndian.AppendUint32(log, uint32(len(line))), line...)
		ends = append(ends, len(log))
	}
	for rule, c := range map[string]breaking{
		"before the first entry": {first: 0, why: io.ErrUnexpectedEOF},
		"in an entry":            {first: 20, why: io.ErrUnexpectedEOF},
		"behind an entry":        {first: ends[1], why: io.ErrUnexpectedEOF},
		"in good order":          {first: ends[1], why: io.EOF},
		"in good order, in one":  {first: 20, why: io.EOF},
		"not at all":             {first: ends[2], why: io.EOF},
	} {
		t.Run(rule, func(t *testing.T) {
			c.log = log
			dir := t.TempDir()
			l, err := New(Options{API: &c, StateDir: filepath.Join(dir, "state")})
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, "log")
			if err = l.prepare("c", path); err != nil {
				t.Fatal(err)
			}
			f, err := l.open("c", "id")
			if err != nil {
				t.Fatal(err)
			}
			f.run()
			f.stop()
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			for entry := range bytes.Lines(data) {
				e, err := crilog.Parse(entry)
				if err != nil {
					t.Fatal(err)
				}
				got += string(e.Content) + "\n"
			}
			if want := "one\ntwo\n"; got != want {
				t.Errorf("the log has %q, want %q", got, want)
			}
		})
	}
}
