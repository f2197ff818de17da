package docker

import (
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"tags.cncf.io/container-device-interface/pkg/cdi"
)

// cdi asks the daemon to inject devices (vendor.com/class=name) by their vendors' files. It would only find out at the
// start that no file describes one, and call that an error of its own; so the files are looked at where it says they are.
func (n *node) cdi(names []string) ([]container.DeviceRequest, error) {
	if len(names) == 0 {
		return nil, nil
	}
	if !n.speaks("1.44") {
		return nil, refused("CDI_devices", "Docker "+n.info.ServerVersion+" has no CDI; 25.0 has")
	}
	if err := described(names, n.info.CDISpecDirs); err != nil {
		return nil, fmt.Errorf("CDI_devices: %w", err)
	}
	return []container.DeviceRequest{{Driver: "cdi", DeviceIDs: names}}, nil
}

// described is errdefs.ErrInvalidArgument where no file in dirs, read anew, describes one of the devices. Nothing is known
// without directories.
func described(names, dirs []string) error {
	if len(dirs) == 0 {
		return nil
	}
	known, err := cdi.NewCache(cdi.WithSpecDirs(dirs...), cdi.WithAutoRefresh(false))
	if err != nil {
		return err
	}
	var unknown []string
	for _, name := range names {
		if known.GetDevice(name) == nil {
			unknown = append(unknown, name)
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	// A file that cannot be read may be the reason.
	return fmt.Errorf("no file in %s has %s: %w", strings.Join(dirs, " or "), strings.Join(unknown, ", "),
		errors.Join(errdefs.ErrInvalidArgument, known.Refresh()))
}
