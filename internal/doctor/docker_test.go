package doctor_test

import (
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/system"

	"gantry/internal/doctor"
)

func TestDocker(t *testing.T) {
	good := system.Info{ServerVersion: "28.1", CgroupDriver: "cgroupfs", LiveRestoreEnabled: true}
	systemd, mortal := good, good
	systemd.CgroupDriver, mortal.LiveRestoreEnabled = "systemd", false
	for name, tt := range map[string]struct {
		engine, api string
		info        system.Info
		worst       doctor.Level
		says        string
	}{
		"as it should be":           {"native", "1.45", good, doctor.OK, "28.1"},
		"another cgroup driver":     {"native", "1.45", systemd, doctor.Warn, "systemd"},
		"the only engine's driver":  {"docker", "1.45", systemd, doctor.OK, "28.1"},
		"containers end with it":    {"docker", "1.45", mortal, doctor.Warn, "restarts"},
		"too old for the only one":  {"docker", "1.24", good, doctor.Fail, "1.24"},
		"too old, beside native":    {"native", "1.24", good, doctor.Warn, "1.24"},
		"gone":                      {"docker", "", good, doctor.Fail, "sock"},
		"gone, and nobody needs it": {"native", "", good, doctor.Warn, "sock"},
	} {
		t.Run(name, func(t *testing.T) {
			o := options("crun")
			o.Engine, o.Cgroup.Driver = tt.engine, "cgroupfs"
			o.Docker.Endpoint = "unix://" + playDocker(t, tt.api, &tt.info)
			all := find(t, doctor.Options{Config: o}, "docker")
			if last := all[len(all)-1]; doctor.Worst(all) != tt.worst || !strings.Contains(last.Message, tt.says) || tt.worst != doctor.OK && last.Mend == "" {
				t.Errorf("%+v; want %s and %q", all, tt.worst, tt.says)
			}
		})
	}
}

// playDocker answers as dockerd does with a version of its API, at the socket that it returns; with none it is gone.
func playDocker(t *testing.T, api string, info *system.Info) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "dockerd") // short: a unix socket's path has 107 bytes at most
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "sock")
	if api == "" {
		return socket
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/_ping", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("API-Version", api) })
	mux.HandleFunc("GET /v"+api+"/info", func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(info) })
	server := httptest.NewUnstartedServer(mux)
	if server.Listener, err = net.Listen("unix", socket); err != nil {
		t.Fatal(err)
	}
	server.Start()
	t.Cleanup(server.Close)
	return socket
}
