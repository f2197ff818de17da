package bridge

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const sysctls = "/proc/sys/net"

func readSysctl(name string) (string, error) {
	data, err := os.ReadFile(filepath.Join(sysctls, name))
	return strings.TrimSpace(string(data)), err
}

// setSysctl writes only what is different, because some kernel settings act when written. It says
// whether it wrote. A setting that this kernel does not have is no error.
func setSysctl(name, value string) (changed bool, err error) {
	have, err := readSysctl(name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && have == value {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("sysctl: %w", err)
	}
	if err := os.WriteFile(filepath.Join(sysctls, name), []byte(value), 0); err != nil {
		return false, fmt.Errorf("set net/%s to %s: %w", name, value, err)
	}
	return true, nil
}

func setSysctls(dir string, values ...[2]string) error {
	for _, v := range values {
		if _, err := setSysctl(filepath.Join(dir, v[0]), v[1]); err != nil {
			return err
		}
	}
	return nil
}

// ipv6Sysctls prepares an interface of the calling thread's namespace: no router advertisements,
// because any pod on the bridge could send them (CVE-2020-10749), and no wait for duplicates.
func ipv6Sysctls(link string, wanted bool) error {
	dir := filepath.Join("ipv6/conf", link)
	if wanted {
		// A pod made by Docker begins with IPv6 off.
		if _, err := setSysctl(filepath.Join(dir, "disable_ipv6"), "0"); err != nil {
			return err
		}
	}
	return setSysctls(dir, [2]string{"accept_ra", "0"}, [2]string{"accept_dad", "0"})
}

// forward turns on forwarding where it is off, and reports it.
func (s *segment) forward(v4, v6 bool) error {
	if v4 {
		changed, err := setSysctl("ipv4/ip_forward", "1")
		if err != nil {
			return err
		}
		if changed {
			s.log.Info("IPv4 forwarding was off and has been turned on", "sysctl", "net.ipv4.ip_forward")
		}
	}
	if !v6 {
		return nil
	}
	if on, err := readSysctl("ipv6/conf/all/forwarding"); err != nil || on == "1" {
		return nil //nolint:nilerr // a kernel without IPv6 forwards none
	}
	if err := s.keepRouterAdvertisements(); err != nil {
		return err
	}
	if _, err := setSysctl("ipv6/conf/all/forwarding", "1"); err != nil {
		return err
	}
	s.log.Info("IPv6 forwarding was off and has been turned on", "sysctl", "net.ipv6.conf.all.forwarding")
	return nil
}

// keepRouterAdvertisements lets links that have their routes from a router keep them: a kernel that
// forwards ignores advertisements unless accept_ra is 2.
func (s *segment) keepRouterAdvertisements() error {
	links, err := filepath.Glob(filepath.Join(sysctls, "ipv6/conf/*/accept_ra"))
	if err != nil {
		return err
	}
	for _, path := range links {
		if link := filepath.Base(filepath.Dir(path)); link == "all" || link == "default" {
			continue // what links still to come get is not ours to say
		}
		name, _ := filepath.Rel(sysctls, path)
		if value, err := readSysctl(name); err != nil || value != "1" {
			continue
		}
		if _, err := setSysctl(name, "2"); err != nil {
			return err
		}
	}
	return nil
}
