package ocispec

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"gantry/internal/pod"
)

// allCapabilities are the kernel's, by number (capabilities(7)).
var allCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL",
	"CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE",
	"CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER",
	"CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT",
	"CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_SYS_TIME",
	"CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL",
	"CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM",
	"CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
}

// defaultCapabilities are what containerd and Docker give a container that asks for nothing.
var defaultCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW",
	"CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE",
	"CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// capabilities applies, in this order: add ALL, drop ALL, the single adds, the single drops. What the
// server itself may not give (bounding) is left out: no runtime could set it. Inheritable ones are
// given only with ambient ones: a default of theirs was CVE-2022-24769.
func capabilities(s *pod.Security, bounding []string) (*specs.LinuxCapabilities, error) {
	add, addAll, err := capNames("add_capabilities", s.AddCaps)
	if err != nil {
		return nil, err
	}
	drop, dropAll, err := capNames("drop_capabilities", s.DropCaps)
	if err != nil {
		return nil, err
	}
	ambient, ambientAll, err := capNames("add_ambient_capabilities", s.AddAmbientCaps)
	if err != nil {
		return nil, err
	}
	if ambientAll {
		ambient = allCapabilities
	}
	given := make(map[string]bool)
	set := func(names []string, value bool) {
		for _, n := range names {
			given[n] = value
		}
	}
	set(defaultCapabilities, true)
	set(allIf(addAll || s.Privileged), true)
	set(allIf(dropAll && !s.Privileged), false)
	set(add, true)
	set(ambient, true)
	if !s.Privileged {
		set(drop, false)
	}
	held := func(name string) bool { return given[name] && slices.Contains(bounding, name) }
	all := filter(allCapabilities, held)
	inherited := filter(allCapabilities, func(name string) bool { return held(name) && slices.Contains(ambient, name) })
	return &specs.LinuxCapabilities{
		Bounding: all, Effective: all, Permitted: all, Inheritable: inherited, Ambient: inherited,
	}, nil
}

func allIf(wanted bool) []string {
	if wanted {
		return allCapabilities
	}
	return nil
}

func filter(names []string, keep func(string) bool) []string {
	var kept []string
	for _, n := range names {
		if keep(n) {
			kept = append(kept, n)
		}
	}
	return kept
}

// capNames reads names with or without "CAP_", in any case.
func capNames(field string, names []string) (known []string, all bool, err error) {
	for _, n := range names {
		full := "CAP_" + strings.TrimPrefix(strings.ToUpper(n), "CAP_")
		switch {
		case full == "CAP_ALL":
			all = true
		case slices.Contains(allCapabilities, full):
			known = append(known, full)
		default:
			return nil, false, fmt.Errorf("%s: %q is no capability: %w", field, n, errdefs.ErrInvalidArgument)
		}
	}
	return known, all, nil
}
