package main

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"testing"

	"gantry/internal/lab"
	"gantry/internal/labimage"
	"gantry/internal/netns"
)

func TestMain(m *testing.M) { lab.Main(m) }

func TestRegistryAnswersInEveryNamespaceAndCountsWhatThereIsToFetch(t *testing.T) {
	r, err := serve()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	layers, err := compress([][]labimage.Entry{{labimage.File("both", 0o644, "1")}, {labimage.File("a", 0o644, "2")}, {labimage.File("b", 0o644, "3")}})
	if err != nil {
		t.Fatal(err)
	}
	if err = r.add("two that share one", layers[:2], append(layers[:1:1], layers[2])); err != nil {
		t.Fatal(err)
	}
	if p := r.big[0]; p.blobs != 5 || len(p.refs) != 2 {
		t.Errorf("%d blobs of %v: three layers and two configurations are to fetch", p.blobs, p.refs)
	}
	other := exec.CommandContext(t.Context(), "unshare", "--net", "sh", "-c", "ip link set lo up; echo; exec sleep 1000")
	out, err := other.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err = other.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = other.Process.Kill(); _ = other.Wait() })
	if !bufio.NewScanner(out).Scan() {
		t.Fatal("no namespace")
	}
	if err = r.join(t.Context(), other.Process.Pid); err != nil {
		t.Fatal(err)
	}
	var conn net.Conn
	err = netns.Do(fmt.Sprintf("/proc/%d/ns/net", other.Process.Pid), func() (err error) {
		conn, err = (&net.Dialer{}).DialContext(t.Context(), "tcp", registryAddress)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil }}}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+registryAddress+"/v2/bench/big0-1/manifests/1", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK || r.Requests(http.MethodGet, "/manifests/") != 1 {
		t.Errorf("%s, and %d requests were counted", resp.Status, r.Requests(http.MethodGet, "/manifests/"))
	}
}

func TestSmallFilesAreCutFromLargeOnes(t *testing.T) {
	all := crumbs([]labimage.Entry{labimage.File("a", 0o644, string(make([]byte, 5<<10))), labimage.File("b", 0o644, "b")})
	if len(all) != 4 || len(all[0].Content) != smallFile || len(all[2].Content) != 1<<10 || all[0].Name == all[1].Name {
		t.Errorf("%d files", len(all))
	}
	if layers := split(all, 2); len(layers[0]) != 2 || len(layers[1]) != 2 {
		t.Errorf("%d and %d files of two layers of about the same size", len(layers[0]), len(layers[1]))
	}
}
