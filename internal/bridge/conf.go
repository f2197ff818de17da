package bridge

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/utils"
	"golang.org/x/sys/unix"
)

// Defaults of Config. The IPv6 subnet is a unique local one (RFC 4193).
const (
	DefaultNetwork = "gantry"
	DefaultBridge  = "gantry0"
	DefaultSubnet4 = "10.87.0.0/16"
	DefaultSubnet6 = "fd67:616e:7472:7900::/64"
)

// Config is what can be chosen about the builtin network. Zero values mean the defaults.
type Config struct {
	Network string         // the network's name in CNI
	Bridge  string         // the bridge's name, at most 15 characters
	Subnets []netip.Prefix // at most one for each IP family
	MTU     int            // bytes; 0: the kernel's default
}

// Conflist returns the network configuration list for `--network builtin`. Users may start from it
// to chain other plugins.
func Conflist(c Config) []byte {
	if c.Network == "" {
		c.Network = DefaultNetwork
	}
	plugin := pluginConf{
		Type: Type, Bridge: c.Bridge, Subnets: c.Subnets, MTU: c.MTU,
		Capabilities: map[string]bool{"portMappings": true},
	}
	plugin.setDefaults()
	data, err := json.MarshalIndent(map[string]any{
		"cniVersion": "1.1.0", "name": c.Network, "plugins": []pluginConf{plugin},
	}, "", "  ")
	if err != nil {
		panic(err) // plain data
	}
	return data
}

// pluginConf is the plugin's own part of a configuration, as CNI hands it over.
type pluginConf struct {
	CNIVersion   string          `json:"cniVersion,omitempty"`
	Type         string          `json:"type"`
	Bridge       string          `json:"bridge,omitempty"`
	Subnets      []netip.Prefix  `json:"subnets,omitempty"`
	MTU          int             `json:"mtu,omitempty"`
	Capabilities map[string]bool `json:"capabilities,omitempty"`
	Runtime      struct {
		Ports []portMapping `json:"portMappings,omitempty"`
	} `json:"runtimeConfig,omitzero"`
	// Valid is given on GC; nil when it is absent, which is not the same as none.
	Valid *[]types.GCAttachment `json:"cni.dev/valid-attachments,omitempty"`
}

func (c *pluginConf) setDefaults() {
	if c.Bridge == "" {
		c.Bridge = DefaultBridge
	}
	if len(c.Subnets) == 0 {
		c.Subnets = []netip.Prefix{netip.MustParsePrefix(DefaultSubnet4), netip.MustParsePrefix(DefaultSubnet6)}
	}
}

func parseConf(data []byte) (*pluginConf, error) {
	var c pluginConf
	if err := json.Unmarshal(data, &c); err != nil {
		return nil, fmt.Errorf("network configuration: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	c.setDefaults()
	if err := c.validate(); err != nil {
		return nil, fmt.Errorf("network configuration: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return &c, nil
}

func (c *pluginConf) validate() error {
	if err := utils.ValidateInterfaceName(c.Bridge); err != nil {
		return fmt.Errorf("bridge %q: %w", c.Bridge, err)
	}
	if len(c.Bridge) >= unix.IFNAMSIZ || strings.HasPrefix(c.Bridge, linkPrefix) {
		return fmt.Errorf("bridge %q: at most %d characters, not beginning with %q", c.Bridge, unix.IFNAMSIZ-1, linkPrefix)
	}
	if c.MTU < 0 || c.MTU != 0 && c.MTU < 68 {
		return fmt.Errorf("mtu %d: at least 68 (RFC 791)", c.MTU)
	}
	families := make(map[bool]bool)
	for i, p := range c.Subnets {
		if !p.IsValid() || p.Addr().Is4In6() {
			return errors.New("subnet is not valid")
		}
		c.Subnets[i] = p.Masked()
		if families[p.Addr().Is4()] {
			return fmt.Errorf("subnet %s: the second of its IP family", p)
		}
		families[p.Addr().Is4()] = true
		if p.Addr().BitLen()-p.Bits() < 2 {
			return fmt.Errorf("subnet %s: too small for a gateway and a pod", p)
		}
	}
	return nil
}

// gateway is the bridge's own address in a subnet: the first.
func gateway(p netip.Prefix) netip.Addr { return p.Addr().Next() }
