package native

import (
	"fmt"

	"github.com/containerd/containerd/v2/contrib/apparmor"
	"github.com/containerd/errdefs"

	"gantry/internal/ocispec"
	"gantry/internal/pod"
)

// defaultProfileName is the AppArmor profile of containers that ask for the runtime's own, or for none.
const defaultProfileName = "gantry-default"

// defaultProfile returns the name of the default profile, and loads it where it is not, for a container
// that needs it on a node that has AppArmor. One that asks for it is refused where it can't be loaded;
// one that says nothing then runs without.
func (e *Engine) defaultProfile(sec *pod.Security) (string, error) {
	if !e.node.AppArmor || !ocispec.WantsDefaultProfile(sec) {
		return "", nil
	}
	err := apparmor.LoadDefaultProfile(defaultProfileName)
	switch {
	case err == nil:
		return defaultProfileName, nil
	case sec.AppArmor == nil:
		return "", nil
	}
	return "", fmt.Errorf("apparmor profile %s: %w: %w", pod.ProfileRuntimeDefault, errdefs.ErrFailedPrecondition, err)
}
