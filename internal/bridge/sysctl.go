package bridge

import (
	"path"
	"path/filepath"

	"gantry/internal/sysctl"
)

// setSysctls sets parameters of one directory.
func setSysctls(tree *sysctl.Tree, dir string, values ...[2]string) error {
	for _, v := range values {
		if _, err := tree.Set(path.Join(dir, v[0]), v[1]); err != nil {
			return err
		}
	}
	return nil
}

// ipv6Sysctls prepares an interface of the calling thread's namespace: no router advertisements,
// because any pod on the bridge could send them (CVE-2020-10749), and no wait for duplicates.
func ipv6Sysctls(tree *sysctl.Tree, link string, wanted bool) error {
	values := [][2]string{{"accept_ra", "0"}, {"accept_dad", "0"}}
	if wanted {
		values = append(values, [2]string{"disable_ipv6", "0"}) // a pod made by Docker begins with IPv6 off
	}
	return setSysctls(tree, "net/ipv6/conf/"+link, values...)
}

// forward turns on forwarding where it is off, and reports it.
func (s *segment) forward(v4, v6 bool) error {
	if v4 {
		changed, err := s.node.Set("net/ipv4/ip_forward", "1")
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
	if on, err := s.node.Read("net/ipv6/conf/all/forwarding"); err != nil || on == "1" {
		return nil //nolint:nilerr // a kernel without IPv6 forwards none
	}
	if err := s.keepRouterAdvertisements(); err != nil {
		return err
	}
	if _, err := s.node.Set("net/ipv6/conf/all/forwarding", "1"); err != nil {
		return err
	}
	s.log.Info("IPv6 forwarding was off and has been turned on", "sysctl", "net.ipv6.conf.all.forwarding")
	return nil
}

// keepRouterAdvertisements lets links that have their routes from a router keep them: a kernel that
// forwards ignores advertisements unless accept_ra is 2.
func (s *segment) keepRouterAdvertisements() error {
	links, err := filepath.Glob("/proc/sys/net/ipv6/conf/*/accept_ra")
	if err != nil {
		return err
	}
	for _, file := range links {
		link := filepath.Base(filepath.Dir(file))
		if link == "all" || link == "default" {
			continue // what links still to come get is not ours to say
		}
		name := path.Join("net/ipv6/conf", link, "accept_ra")
		if value, err := s.node.Read(name); err != nil || value != "1" {
			continue
		}
		if _, err := s.node.Set(name, "2"); err != nil {
			return err
		}
	}
	return nil
}
