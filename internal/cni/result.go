package cni

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"gantry/internal/pod"
)

// convert reads a pod's addresses from an ADD's result: those of eth0 first, then those of the
// pod's other interfaces, each in the plugins' order. Addresses of interfaces on the node are not
// the pod's. A pod without an address is an error.
func convert(res types.Result) (*pod.Network, error) {
	r, err := types100.NewResultFromResult(res)
	if err != nil {
		return nil, fmt.Errorf("result of the network plugins: %w", err)
	}
	var first, rest []string
	network := &pod.Network{}
	for _, ip := range r.IPs {
		switch where := interfaceOf(r, ip); {
		case where == nil || where.Name == interfaceName && where.Sandbox != "":
			first = append(first, ip.Address.IP.String())
		case where.Sandbox != "":
			rest = append(rest, ip.Address.IP.String())
		}
	}
	for _, i := range r.Interfaces {
		if i.Name == interfaceName && i.Sandbox != "" {
			network.MAC = i.Mac
		}
	}
	network.IPs = append(first, rest...)
	if len(network.IPs) == 0 {
		return nil, errors.New("the network plugins gave the pod no address")
	}
	var raw bytes.Buffer
	if err := res.PrintTo(&raw); err != nil {
		return nil, fmt.Errorf("result of the network plugins: %w", err)
	}
	network.Result = raw.Bytes()
	return network, nil
}

// interfaceOf is nil when the result does not say, as results before 0.3.0 never do.
func interfaceOf(r *types100.Result, ip *types100.IPConfig) *types100.Interface {
	if ip.Interface == nil || *ip.Interface < 0 || *ip.Interface >= len(r.Interfaces) {
		return nil
	}
	return r.Interfaces[*ip.Interface]
}
