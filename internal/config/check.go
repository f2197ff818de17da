package config

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/distribution/reference"

	"gantry/internal/projquota"
)

// ValueError says that the value of one option is not legal.
type ValueError struct {
	Key string // as in the file
	Err error
}

func (e *ValueError) Error() string { return e.Key + ": " + e.Err.Error() }

// Unwrap returns the reason.
func (e *ValueError) Unwrap() error { return e.Err }

// Validate checks every value and returns all that is wrong, each as a *ValueError.
func (o *Options) Validate() error {
	var errs []error
	for _, opt := range options() {
		if opt.check == nil {
			continue
		}
		if err := opt.check(o); err != nil {
			errs = append(errs, &ValueError{opt.key, err})
		}
	}
	return errors.Join(errs...)
}

// SocketPath is the path of the CRI socket.
func (o *Options) SocketPath() string { return strings.TrimPrefix(o.Listen, "unix://") }

// maxSocket is what fits in sun_path with its final zero (unix(7)).
const maxSocket = 107

func unixURL(s string) error {
	path, ok := strings.CutPrefix(s, "unix://")
	if !ok || !filepath.IsAbs(path) {
		return fmt.Errorf("%q is not unix:///PATH", s)
	}
	return socketPath(path)
}

func socketPath(path string) error {
	if len(path) > maxSocket {
		return fmt.Errorf("%q is longer than the %d bytes that a socket's path may have", path, maxSocket)
	}
	return absolute(path)
}

// waits bounds what a pod may have to wait for one plugin.
func waits(limit Duration) error {
	d := time.Duration(limit)
	if d < time.Millisecond || d > time.Minute {
		return fmt.Errorf("%v is not from 1ms to 1m", d)
	}
	return nil
}

func notNegative(n int) error {
	if n < 0 {
		return fmt.Errorf("%d is negative", n)
	}
	return nil
}

// checkRuntimeOptions wants every handler that has options to have a binary.
func checkRuntimeOptions(o *Options) error {
	for name := range o.Runtime.Options {
		if _, ok := o.Runtime.Paths[name]; !ok {
			return fmt.Errorf("%q is no handler of runtime.paths", name)
		}
	}
	return nil
}

func absolute(s string) error {
	if !filepath.IsAbs(s) {
		return fmt.Errorf("%q is not an absolute path", s)
	}
	return nil
}

func optional(s string, check func(string) error) error {
	if s == "" {
		return nil
	}
	return check(s)
}

func each(list []string, check func(string) error) error {
	for _, s := range list {
		if err := check(s); err != nil {
			return err
		}
	}
	return nil
}

func oneOf(s string, legal ...string) error {
	if slices.Contains(legal, s) {
		return nil
	}
	return fmt.Errorf("%q is not %s", s, strings.Join(legal, " or "))
}

func hostPort(s string) error {
	_, port, err := net.SplitHostPort(s)
	if err != nil {
		return fmt.Errorf("%q is not HOST:PORT", s)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("%q: port %q is not a number from 0 to 65535", s, port)
	}
	return nil
}

func imageRef(s string) error {
	_, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		return fmt.Errorf("%q is not an image reference: %w", s, err)
	}
	return nil
}

func interfaceName(s string) error {
	if s == "" || len(s) > 15 || strings.ContainsAny(s, "/: \t\n") || s == "." || s == ".." {
		return fmt.Errorf("%q is not a name for a network device: 1 to 15 characters without blanks, '/' and ':'", s)
	}
	return nil
}

func subnets(list []string) error {
	if len(list) == 0 {
		return errors.New("at least one network is needed")
	}
	var seen [2]bool
	for _, s := range list {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return fmt.Errorf("%q is not an IP network such as 10.85.0.0/16", s)
		}
		if p != p.Masked() {
			return fmt.Errorf("%q has bits of a host; the network is %s", s, p.Masked())
		}
		if p.Addr().BitLen()-p.Bits() < 3 {
			return fmt.Errorf("%q is too small for pods", s)
		}
		family := 0
		if p.Addr().Is6() {
			family = 1
		}
		if seen[family] {
			return fmt.Errorf("%q is a second network of its family", s)
		}
		seen[family] = true
	}
	return nil
}

func checkState(o *Options) error {
	if err := absolute(o.State); err != nil {
		return err
	}
	if filepath.Clean(o.State) == filepath.Clean(o.Root) {
		return errors.New("is the same directory as root")
	}
	return nil
}

func dockerURL(s string) error {
	if strings.HasPrefix(s, "unix://") {
		return unixURL(s)
	}
	address, ok := strings.CutPrefix(s, "tcp://")
	if !ok {
		return fmt.Errorf("%q is neither unix:///PATH nor tcp://HOST:PORT", s)
	}
	return hostPort(address)
}

func checkTakeOver(o *Options) error {
	if o.Docker.TakeOver && o.Docker.Endpoint == "" {
		return errors.New("there is no docker.endpoint to take over from")
	}
	return nil
}

func checkDockerTLS(o *Options) error {
	if (o.Docker.TLSCert == "") != (o.Docker.TLSKey == "") {
		return errors.New("a certificate and its key come together")
	}
	return optional(o.Docker.TLSCert, absolute)
}

func checkMetrics(o *Options) error { return optional(o.Metrics.Listen, hostPort) }

func checkStreamingTLS(o *Options) error {
	if (o.Streaming.TLSCert == "") != (o.Streaming.TLSKey == "") {
		return errors.New("a certificate and its key come together")
	}
	return optional(o.Streaming.TLSCert, absolute)
}

func checkBandwidth(o *Options) error {
	if n := o.Images.Bandwidth; n < 0 {
		return fmt.Errorf("%d is less than 0", n)
	}
	return nil
}

func checkParallel(o *Options) error {
	if n := o.Images.Parallel; n < 1 || n > 64 {
		return fmt.Errorf("%d is not from 1 to 64", n)
	}
	return nil
}

func checkProjects(o *Options) error {
	_, err := projquota.ParseRange(o.Images.Projects)
	return err
}

func checkMTU(o *Options) error {
	// 1280 is the least that IPv6 works with (RFC 8200, section 5).
	if n := o.Network.Builtin.MTU; n != 0 && (n < 1280 || n > 65535) {
		return fmt.Errorf("%d is not 0 or from 1280 to 65535", n)
	}
	return nil
}

// handlerName is what Kubernetes accepts as a RuntimeClass handler (a DNS label).
var handlerName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

func checkRuntimes(o *Options) error {
	for _, name := range slices.Sorted(maps.Keys(o.Runtime.Paths)) {
		if !handlerName.MatchString(name) {
			return fmt.Errorf("%q is not a RuntimeClass handler: lower-case letters, digits and '-'", name)
		}
		if name == EngineDocker {
			return fmt.Errorf("%q is the handler of Docker Engine", name)
		}
		if err := absolute(o.Runtime.Paths[name]); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func checkDefaultRuntime(o *Options) error {
	if o.Runtime.Default == "" {
		return nil
	}
	if _, ok := o.Runtime.Paths[o.Runtime.Default]; ok {
		return nil
	}
	names := slices.Sorted(maps.Keys(o.Runtime.Paths))
	if len(names) == 0 {
		return fmt.Errorf("%q is not a runtime: none is configured or found on PATH", o.Runtime.Default)
	}
	return fmt.Errorf("%q is not a runtime; there are %s", o.Runtime.Default, strings.Join(names, ", "))
}
