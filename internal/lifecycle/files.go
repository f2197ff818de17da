package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"

	"gantry/internal/atomicfile"
	"gantry/internal/engine"
	"gantry/internal/pod"
)

func (m *Manager) podsDir() string { return filepath.Join(m.opts.StateDir, "pods") }

func (m *Manager) podFiles(key pod.Key) engine.Files {
	dir := filepath.Join(m.podsDir(), string(key))
	return engine.Files{
		Dir:        dir,
		ResolvConf: filepath.Join(dir, "resolv.conf"),
		Hosts:      filepath.Join(dir, "hosts"),
		Hostname:   filepath.Join(dir, "hostname"),
	}
}

// makeAll makes a log directory. Where a disk has errors, os.MkdirAll says of a directory that it is there and
// no directory; the error is what there is to say.
func makeAll(dir string) error {
	err := os.MkdirAll(dir, 0o755)
	if errors.Is(err, fs.ErrExist) {
		if _, broken := os.Lstat(dir); broken != nil {
			return broken
		}
	}
	return err
}

// writeFiles writes what the containers of the pod will see below /etc. The kubelet mounts an
// /etc/hosts of its own over ours; other clients do not.
func (m *Manager) writeFiles(_ context.Context, p *podEntry) error {
	spec := &p.now.Load().Spec
	if spec.LogDirectory != "" {
		if !filepath.IsAbs(spec.LogDirectory) {
			return fmt.Errorf("log directory %q is not absolute: %w", spec.LogDirectory, errdefs.ErrInvalidArgument)
		}
		if err := makeAll(spec.LogDirectory); err != nil {
			return fmt.Errorf("make log directory: %w", err)
		}
	}
	if err := os.MkdirAll(p.files.Dir, 0o755); err != nil {
		return fmt.Errorf("make pod directory: %w", err)
	}
	resolv, err := m.resolvConf(spec.DNS)
	if err != nil {
		return err
	}
	hostname, err := hostnameOf(spec)
	if err != nil {
		return err
	}
	if err := atomicfile.Write(p.files.ResolvConf, resolv, 0o644); err != nil {
		return err
	}
	if err := atomicfile.Write(p.files.Hostname, []byte(hostname+"\n"), 0o644); err != nil {
		return err
	}
	return m.writeHosts(p, nil)
}

func (m *Manager) removeFiles(_ context.Context, p *podEntry) error {
	return removeDir(p.files.Dir)
}

// removeDir removes a pod's directory, but never what is mounted below it: an engine that could not
// unmount has something there that is not ours to delete.
func removeDir(dir string) error {
	for _, name := range []string{"resolv.conf", "hosts", "hostname"} {
		_ = os.Remove(filepath.Join(dir, name))
	}
	if err := os.Remove(dir); err == nil || os.IsNotExist(err) { // the usual case: nothing else is there
		return nil
	}
	path, err := filepath.EvalSymlinks(dir) // as mountinfo names it
	if err != nil {
		return fmt.Errorf("remove pod directory: %w", err)
	}
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(path))
	if err != nil {
		return fmt.Errorf("remove pod directory: %w", err)
	}
	if len(mounts) > 0 {
		return fmt.Errorf("remove pod directory: %s is mounted: %w", mounts[0].Mountpoint, errdefs.ErrFailedPrecondition)
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove pod directory: %w", err)
	}
	return nil
}

// resolvConf is the node's own when the client said nothing about DNS (CRI DNSConfig).
func (m *Manager) resolvConf(dns *pod.DNS) ([]byte, error) {
	if dns == nil {
		return nodeFile(m.opts.ResolvConf)
	}
	var b strings.Builder
	if len(dns.Searches) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(dns.Searches, " "))
	}
	for _, s := range dns.Servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(dns.Options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(dns.Options, " "))
	}
	return []byte(b.String()), nil
}

func hostnameOf(spec *pod.SandboxSpec) (string, error) {
	if spec.Hostname != "" {
		return spec.Hostname, nil
	}
	name, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("read the node's hostname: %w", err)
	}
	return name, nil
}

// writeHosts writes /etc/hosts; the pod's own name is in it once the network gave addresses.
func (m *Manager) writeHosts(p *podEntry, n *pod.Network) error {
	spec := &p.now.Load().Spec
	if spec.HostNetwork() {
		hosts, err := nodeFile(m.opts.Hosts)
		if err != nil {
			return err
		}
		return atomicfile.Write(p.files.Hosts, hosts, 0o644)
	}
	var b strings.Builder
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	hostname, err := hostnameOf(spec)
	if err != nil {
		return err
	}
	if n != nil {
		for _, ip := range n.IPs {
			fmt.Fprintf(&b, "%s\t%s\n", ip, hostname)
		}
	}
	return atomicfile.Write(p.files.Hosts, []byte(b.String()), 0o644)
}

// nodeFile reads one of the node's files; a node without it has an empty one.
func nodeFile(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		return nil, fmt.Errorf("read the node's file: %w", err)
	}
	return b, nil
}
