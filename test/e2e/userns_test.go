package e2e_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/test/node"
)

// mapped gives a pod a user namespace with ids of the node from first on.
func mapped(s *runtimeapi.PodSandboxConfig, first uint32) *runtimeapi.PodSandboxConfig {
	ids := []*runtimeapi.IDMapping{{HostId: first, Length: 65536}}
	s.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{
		Mode: runtimeapi.NamespaceMode_POD, Uids: ids, Gids: ids,
	}
	return s
}

// A pod with a user namespace has its volumes as their owners know them, outlives the server and leaves
// nothing.
func TestUserNamespace(t *testing.T) {
	for _, env := range environments {
		t.Run(env.name, func(t *testing.T) {
			n := node.Start(t, env.options)
			ref := warm(t, n)
			volume := filepath.Join(n.Root, "volume")
			file := filepath.Join(volume, "file")
			err := errors.Join(os.Chmod(n.Root, 0o711), os.Chmod(n.State, 0o711), // ids of others must pass
				os.Mkdir(volume, 0o755), os.WriteFile(file, nil, 0o600), os.Chown(file, 1000, 1000))
			if err != nil {
				t.Fatal(err)
			}
			leavesNothing(t, n)

			s := mapped(n.Sandbox("mapped"), 400000)
			u := s.Linux.SecurityContext.NamespaceOptions.UsernsOptions
			c := node.Container("main", n.Pull(ref), "sh", "-c", "id -u; exec sleep 100000")
			c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = u
			c.Mounts = []*runtimeapi.Mount{
				{ContainerPath: "/volume", HostPath: volume, UidMappings: u.Uids, GidMappings: u.Gids},
				{ContainerPath: "/image", Image: &runtimeapi.ImageSpec{Image: n.Pull(ref)}, ImageSubPath: "etc", Readonly: true},
			}
			pod, container := n.Launch(s, c)
			n.Kill()
			n.Restart()

			got := strings.Join(strings.Fields(n.Exec(container, "sh", "-c",
				"cat /proc/self/uid_map; stat -c '%u' /volume/file /image/passwd /bin/sh; touch /volume/new && ls /volume; echo reopened > /dev/stdout")), " ")
			if want := "0 400000 65536 1000 0 0 file new reopened"; got != want {
				t.Errorf("inside: %q, want %q", got, want)
			}
			if st, statErr := os.Stat(filepath.Join(volume, "new")); statErr != nil {
				t.Error(statErr)
			} else if owner := ownerOf(st); owner != 0 {
				t.Errorf("what root inside wrote to the volume belongs to %d", owner)
			}
			_, err = n.Runtime.RunPodSandbox(n.Context(), &runtimeapi.RunPodSandboxRequest{Config: mapped(n.Sandbox("clash"), 465535)})
			if status.Code(err) != codes.FailedPrecondition {
				t.Errorf("a pod with one of its ids: %v", err)
			}
			n.RemovePod(pod)
		})
	}
}

func ownerOf(st os.FileInfo) uint32 { return st.Sys().(*syscall.Stat_t).Uid }
