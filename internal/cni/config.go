package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"
)

// config is a configuration list and where it came from.
type config struct {
	name string // a file's name, for messages
	list *libcni.NetworkConfigList
}

func (c *config) describe() string {
	if c == nil {
		return ""
	}
	return c.name + string(c.list.Bytes)
}

// load reads the first valid file of dir. The errors are those of the invalid files before it, each
// of which names its file.
func load(dir string) (*config, []error) {
	files, err := libcni.ConfFiles(dir, []string{".conflist", ".conf", ".json"})
	if err != nil {
		return nil, []error{err}
	}
	slices.Sort(files)
	var invalid []error
	for _, f := range files {
		list, err := loadFile(f)
		if err != nil {
			invalid = append(invalid, fmt.Errorf("%s: %w", f, err))
			continue
		}
		return &config{name: f, list: list}, invalid
	}
	return nil, invalid
}

func noConfig(dir string, invalid []error) error {
	if len(invalid) > 0 {
		return fmt.Errorf("no valid network configuration in %s: %w: %w", dir, errors.Join(invalid...), errdefs.ErrUnavailable)
	}
	if _, err := os.Stat(dir); err != nil {
		return fmt.Errorf("no network configuration: %w: %w", err, errdefs.ErrUnavailable)
	}
	return fmt.Errorf("no network configuration in %s: %w", dir, errdefs.ErrUnavailable)
}

func loadFile(path string) (*libcni.NetworkConfigList, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if filepath.Ext(path) != ".conflist" {
		if data, err = listOfOne(data); err != nil {
			return nil, err
		}
		return parseList(data)
	}
	list, err := libcni.NetworkConfFromBytes(data)
	if err != nil {
		return nil, err
	}
	if !list.LoadOnlyInlinedPlugins {
		more, err := libcni.NetworkPluginConfsFromFiles(filepath.Dir(path), list.Name)
		if err != nil {
			return nil, err
		}
		if len(more) > 0 {
			// Inlined, because the list's bytes are what the pod is disconnected with.
			if data, err = inline(data, append(list.Plugins, more...)); err != nil {
				return nil, err
			}
		}
	}
	return parseList(data)
}

// listOfOne makes a list of the configuration of a single plugin.
func listOfOne(data []byte) ([]byte, error) {
	var single struct {
		Name       string `json:"name"`
		CNIVersion string `json:"cniVersion,omitempty"`
		Type       string `json:"type"`
	}
	if err := json.Unmarshal(data, &single); err != nil {
		return nil, err
	}
	if single.Type == "" {
		return nil, errors.New(`no "type": a list of plugins belongs into a .conflist file`)
	}
	return json.Marshal(map[string]any{
		"name": single.Name, "cniVersion": single.CNIVersion, "plugins": []json.RawMessage{data},
	})
}

func inline(data []byte, plugins []*libcni.PluginConfig) ([]byte, error) {
	var raw map[string]any
	if err := json.Unmarshal(data, &raw); err != nil {
		return nil, err
	}
	all := make([]json.RawMessage, 0, len(plugins))
	for _, p := range plugins {
		all = append(all, p.Bytes)
	}
	raw["plugins"] = all
	raw["loadOnlyInlinedPlugins"] = true
	return json.Marshal(raw)
}

// parseList reads a list that holds all its plugins and checks what libcni checks only when used.
func parseList(data []byte) (*libcni.NetworkConfigList, error) {
	list, err := libcni.NetworkConfFromBytes(data)
	if err != nil {
		return nil, err
	}
	if err := utils.ValidateNetworkName(list.Name); err != nil {
		return nil, err
	}
	if len(list.Plugins) == 0 {
		return nil, errors.New("no plugins in list")
	}
	if list.CNIVersion != "" && !slices.Contains(version.All.SupportedVersions(), list.CNIVersion) {
		return nil, fmt.Errorf("cniVersion %q is none of %v", list.CNIVersion, version.All.SupportedVersions())
	}
	return list, nil
}
