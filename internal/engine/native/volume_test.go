package native_test

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"gantry/internal/image"
	"gantry/internal/pod"
)

func TestImageVolume(t *testing.T) {
	for _, runtime := range []string{"crun", "runc"} {
		for rule, ids := range map[string]*pod.UserNamespace{"plain": nil, "in a user namespace": userNamespace(100000)} {
			t.Run(runtime+"/"+rule, func(t *testing.T) {
				p := newMappedPod(t, runtime, func(spec *pod.SandboxSpec) { spec.Namespaces.User = ids })
				text, exit := p.run(`stat -c '%u %n' /volume/bin/busybox /volume/home/gantry; cat /etc-of-image/hostname
					touch /volume/x 2>/dev/null || echo read-only; /volume/bin/busybox true 2>/dev/null || echo noexec`,
					func(c *pod.ContainerSpec) {
						c.Mounts = []pod.Mount{
							{ContainerPath: "/volume", Image: p.image.ID},
							{ContainerPath: "/etc-of-image", Image: p.image.ID, ImageSubPath: "etc"},
						}
					})
				want := "0 /volume/bin/busybox\n1000 /volume/home/gantry\nimage\nread-only\nnoexec"
				if text != want || exit.Code != 0 {
					t.Errorf("exit %+v, printed\n%s\nwant\n%s", exit, text, want)
				}
			})
		}
	}
}

func TestImageVolumesThatCannotBeLeaveNothing(t *testing.T) {
	p := newStation(t, "crun").newPod(t)
	for rule, tt := range map[string]struct {
		mount pod.Mount
		is    func(error) bool
		names string
	}{
		"an image that is not there": {
			pod.Mount{ContainerPath: "/v", Image: "sha256:" + strings.Repeat("0", 64)}, errdefs.IsNotFound, "mount /v: image",
		},
		"a path that is not in it": {
			pod.Mount{ContainerPath: "/v", Image: p.image.ID, ImageSubPath: "no/such"}, errdefs.IsInvalidArgument, "image_sub_path no/such",
		},
	} {
		t.Run(rule, func(t *testing.T) {
			req := p.request("true", func(c *pod.ContainerSpec) {
				c.Mounts = []pod.Mount{{ContainerPath: "/good", Image: p.image.ID}, tt.mount}
			})
			if _, err := p.CreateContainer(t.Context(), req); !tt.is(err) || !strings.Contains(err.Error(), tt.names) {
				t.Errorf("CreateContainer: %v", err)
			}
			if keys, err := p.opts.Rootfs.Prepared(t.Context()); len(keys) > 0 || err != nil {
				t.Errorf("left behind %v, %v", keys, err)
			}
		})
	}
}

func TestImageVolumesAreFoundAfterACrash(t *testing.T) {
	p := newStation(t, "crun").newPod(t)
	key := pod.NewKey()
	if _, err := p.opts.Rootfs.Prepare(t.Context(), image.Mount{Key: string(key) + ".volume-0", Image: p.image.ID, Volume: true}); err != nil {
		t.Fatal(err)
	}
	inv, err := p.List(t.Context())
	if err != nil || len(inv.Containers) != 1 || inv.Containers[0].Key != key {
		t.Errorf("List shows %+v, %v", inv.Containers, err)
	}
	if err := p.RemoveContainer(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	if keys, err := p.opts.Rootfs.Prepared(t.Context()); len(keys) > 0 || err != nil {
		t.Errorf("left behind %v, %v", keys, err)
	}
}
