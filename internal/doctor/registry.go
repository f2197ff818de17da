package doctor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	hosts "github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/log"
	"github.com/sirupsen/logrus" //nolint:depguard // the registry library logs through it what its errors leave out
)

// registryTimeout bounds the wait for one registry.
const registryTimeout = 15 * time.Second

func checkRegistries(ctx context.Context, n *node) []Finding {
	dir := n.Config.Images.CertsDir
	var found []Finding
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		found = append(found, Finding{Level: Fail, Message: err.Error()})
	}
	said := &listener{}
	logger := logrus.New()
	logger.SetOutput(io.Discard)
	logger.AddHook(said)
	configure := hosts.ConfigureHosts(log.WithLogger(ctx, logrus.NewEntry(logger)), hosts.HostOptions{HostDir: hosts.HostDirFromRoot(dir)})
	good := 0
	for _, e := range entries {
		if !e.IsDir() || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		_, err := configure(e.Name())
		if err = errors.Join(err, said.take()); err != nil {
			found = append(found, Finding{Level: Fail, Message: fmt.Sprintf("%s/%s: %v", dir, e.Name(), err), Mend: "correct its hosts.toml"})
			continue
		}
		good++
	}
	if len(found) == 0 {
		found = one(OK, fmt.Sprintf("%d registries configured in %s", good, dir), "")
	}
	for _, host := range n.Registries {
		found = append(found, reach(ctx, configure, host))
	}
	return found
}

// listener hears what the library logs as an error: a hosts.toml that it cannot read is one, and is
// passed over.
type listener struct{ heard error }

func (l *listener) Levels() []logrus.Level { return []logrus.Level{logrus.ErrorLevel} }

func (l *listener) Fire(e *logrus.Entry) error {
	cause, _ := e.Data[logrus.ErrorKey].(error)
	l.heard = errors.Join(l.heard, cause, errors.New(e.Message))
	return nil
}

// take returns what was heard since the last take.
func (l *listener) take() error {
	err := l.heard
	l.heard = nil
	return err
}

// reach asks for the API's version (distribution-spec, end-1): 200 and 401 are answers of a registry.
func reach(ctx context.Context, configure docker.RegistryHosts, host string) Finding {
	ctx, cancel := context.WithTimeout(ctx, registryTimeout)
	defer cancel()
	all, err := configure(host)
	if err != nil {
		return Finding{Level: Fail, Message: fmt.Sprintf("%s: %v", host, err)}
	}
	var errs []error
	for _, h := range all {
		at := h.Scheme + "://" + h.Host + h.Path + "/"
		if err := ask(ctx, h.Client, at); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", at, err))
			continue
		}
		return Finding{Level: OK, Message: host + " answers at " + at}
	}
	return Finding{
		Level: Fail, Message: fmt.Sprintf("%s does not answer: %v", host, errors.Join(errs...)),
		Mend: "check DNS, routes and proxy (HTTPS_PROXY in the server's environment); plain HTTP needs a hosts.toml with an http:// server",
	}
}

func ask(ctx context.Context, client *http.Client, at string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusUnauthorized {
		return errors.New(resp.Status)
	}
	return nil
}
