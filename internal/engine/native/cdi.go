package native

import (
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"
)

// injectCDI edits spec as the vendors of the devices (vendor.com/class=name) say in their files, which
// are read anew for every container that asks. A device that no file has is errdefs.ErrInvalidArgument.
func (e *Engine) injectCDI(spec *specs.Spec, devices []string) error {
	if len(devices) == 0 {
		return nil
	}
	known, err := cdi.NewCache(cdi.WithSpecDirs(e.opts.CDISpecDirs...), cdi.WithAutoRefresh(false))
	if err != nil {
		return fmt.Errorf("CDI_devices: %w", err)
	}
	unknown, err := known.InjectDevices(spec, devices...)
	if len(unknown) > 0 {
		// A file that cannot be read may be the reason.
		broken := known.Refresh()
		return fmt.Errorf("CDI_devices: no file in %s has %s: %w", strings.Join(e.opts.CDISpecDirs, " or "),
			strings.Join(unknown, ", "), errors.Join(errdefs.ErrInvalidArgument, broken))
	}
	if err != nil {
		return fmt.Errorf("CDI_devices: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	return nil
}
