package docker_test

import (
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/labdocker"
	"gantry/internal/labimage"
	"gantry/test/node"
)

func TestMigrateImages(t *testing.T) {
	for name, o := range map[string]labdocker.Options{
		"20.10":                     {Version: labdocker.Debian},
		"current, containerd store": {Version: labdocker.Current, Store: labdocker.Snapshotter},
		"current, graph driver":     {Version: labdocker.Current, Store: labdocker.GraphDriver},
	} {
		t.Run(name, func(t *testing.T) {
			d := labdocker.Start(t, o)
			n := node.Start(t, node.Options{})
			other, err := labimage.Busybox(func(c *v1.Config) { c.Labels["built"] = "here" })
			if err != nil {
				t.Fatal(err)
			}
			d.Load("lab/built:2", other)
			d.Docker("tag", "lab/built:2", "lab/other:name")
			pulled := node.Busybox(t)
			d.Docker("pull", "-q", pulled)
			digest := strings.TrimSpace(d.Docker("inspect", "-f", "{{index .RepoDigests 0}}", pulled))
			migrate := func(args ...string) string {
				return n.Gantry(append([]string{"migrate", "images", "--from", "docker", "--docker-endpoint", d.Endpoint()}, args...)...)
			}
			if out := migrate("lab/built:2"); strings.Count(out, "copied") != 1 || strings.Count(out, "\n") != 1 {
				t.Errorf("one image: %s", out)
			}
			if out := migrate(); strings.Count(out, "copied") != 1 || strings.Count(out, "is there already") != 1 {
				t.Errorf("all after one: %s", out)
			}
			if out := migrate(); strings.Count(out, "is there already") != 2 || strings.Count(out, "\n") != 2 {
				t.Errorf("all again: %s", out)
			}
			for _, ref := range []string{"lab/built:2", "lab/other:name", pulled, digest} {
				r, err := n.Images.ImageStatus(n.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
				if err != nil || r.Image == nil {
					t.Errorf("%s: %v, %v", ref, r, err)
				}
			}
			if out := n.Gantry("images", "verify"); strings.Contains(out, "damaged") {
				t.Errorf("verify: %s", out)
			}
			d.Stop()
			pod, container := n.Launch(n.Sandbox("moved"), node.Container("main", digest, idle...))
			if out := n.Exec(container, "echo", "here"); out != "here\n" {
				t.Errorf("exec: %q", out)
			}
			n.RemovePod(pod)
		})
	}
}
