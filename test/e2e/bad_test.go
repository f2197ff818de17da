package e2e_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/test/leftovers"
	"gantry/test/node"
)

const absentDigest = "@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// TestBadRequests makes requests that can't work. Each must be refused with its code, in words that
// name the culprit, and leave nothing.
func TestBadRequests(t *testing.T) {
	n := node.Start(t, node.Options{Flags: []string{"--runtime", "gone=/nonexistent/runtime"}})
	ref := warm(t, n)
	repository := ref[:strings.LastIndexByte(ref, ':')]
	for _, tc := range []struct {
		name  string
		code  codes.Code
		words string
		call  func(n *node.Node) error
	}{
		{"unknown handler", codes.InvalidArgument, "no-such-handler", func(n *node.Node) error {
			return runPod(n, n.Sandbox("bad"), "no-such-handler")
		}},
		{"sandbox without metadata", codes.InvalidArgument, "metadata", func(n *node.Node) error {
			return runPod(n, &runtimeapi.PodSandboxConfig{}, "")
		}},
		{"pull of a malformed reference", codes.InvalidArgument, "UPPER", func(n *node.Node) error {
			return pull(n, "127.0.0.1:5000/UPPER case//x:tag")
		}},
		{"pull of an image that is not there", codes.NotFound, "absent", func(n *node.Node) error {
			return pull(n, repository+"-absent:1")
		}},
		{"pull of a digest that is not there", codes.NotFound, "0123456789abcdef", func(n *node.Node) error {
			return pull(n, repository+absentDigest)
		}},
		{"pull from a registry that does not answer", codes.Unavailable, "127.0.0.1:1", func(n *node.Node) error {
			return pull(n, "127.0.0.1:1/lab/busybox:1")
		}},
		{"container of an image that was not pulled", codes.NotFound, "absent", func(n *node.Node) error {
			return inPod(n, "", func(pod string, s *runtimeapi.PodSandboxConfig) error {
				return create(n, pod, node.Container("bad", repository+"-absent:1", "true"), s)
			})
		}},
		{"container in a pod that is not there", codes.NotFound, "0000", func(n *node.Node) error {
			return create(n, strings.Repeat("0", 64), node.Container("bad", ref, "true"), n.Sandbox("bad"))
		}},
		{"mount of a source that is not there", codes.InvalidArgument, "/nonexistent/source", func(n *node.Node) error {
			return inPod(n, "", func(pod string, s *runtimeapi.PodSandboxConfig) error {
				c := node.Container("bad", ref, "true")
				c.Mounts = []*runtimeapi.Mount{{HostPath: "/nonexistent/source", ContainerPath: "/data"}}
				return create(n, pod, c, s)
			})
		}},
		{"exec in a container that is not there", codes.NotFound, "0000", func(n *node.Node) error {
			_, err := n.Runtime.ExecSync(n.Context(), &runtimeapi.ExecSyncRequest{ContainerId: strings.Repeat("0", 64), Cmd: []string{"true"}})
			return err
		}},
		{"runtime binary that is not there", codes.Unavailable, "/nonexistent/runtime", func(n *node.Node) error {
			return inPod(n, "gone", func(pod string, s *runtimeapi.PodSandboxConfig) error {
				return create(n, pod, node.Container("bad", ref, "true"), s)
			})
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := n.For(t)
			leavesNothing(t, n)
			err := tc.call(n)
			if status.Code(err) != tc.code {
				t.Errorf("code %v, want %v: %v", status.Code(err), tc.code, err)
			}
			if !strings.Contains(status.Convert(err).Message(), tc.words) {
				t.Errorf("%q does not name %q", status.Convert(err).Message(), tc.words)
			}
		})
	}
}

// A command that is not in the image fails when the container is started or, where the runtime
// looks earlier, when it is created.
func TestCommandThatIsNotInTheImage(t *testing.T) {
	for _, env := range environments[:2] {
		t.Run(env.name, func(t *testing.T) {
			n := node.Start(t, env.options)
			ref := warm(t, n)
			leavesNothing(t, n)
			sandbox := n.Sandbox("bad")
			pod := n.RunPod(sandbox)
			err := create(n, pod, node.Container("bad", ref, "/no/such/command"), sandbox)
			if err == nil {
				list, lerr := n.Runtime.ListContainers(n.Context(), &runtimeapi.ListContainersRequest{})
				if lerr != nil || len(list.Containers) != 1 {
					t.Fatalf("%d containers, error %v", len(list.GetContainers()), lerr)
				}
				_, err = n.Runtime.StartContainer(n.Context(), &runtimeapi.StartContainerRequest{ContainerId: list.Containers[0].Id})
			}
			if err == nil || !strings.Contains(err.Error(), "/no/such/command") {
				t.Errorf("error %v, want one that names the command", err)
			}
			n.RemovePod(pod)
		})
	}
}

// onFire is what a plugin script says when it fails.
const onFire = `echo '{"cniVersion":"1.0.0","code":100,"msg":"the switch is on fire"}'; exit 1`

// TestBadNetworks runs pods on networks that fail.
func TestBadNetworks(t *testing.T) {
	for _, tc := range []struct {
		name   string
		plugin string // script of a plugin called "bad"; "" for no configuration at all
		flags  []string
		code   codes.Code
		words  string
	}{
		{name: "a plugin that fails", code: codes.Unavailable, words: "the switch is on fire",
			plugin: `[ "$CNI_COMMAND" = DEL ] && exit 0; ` + onFire},
		{name: "a plugin whose DEL fails too, for a while", code: codes.Unavailable, words: "the switch is on fire",
			plugin: `[ "$CNI_COMMAND" = DEL ] && mkdir "$0.first" || [ "$CNI_COMMAND" = ADD ] || exit 0; ` + onFire},
		{name: "a plugin that is not there", code: codes.Unavailable, words: "absent-plugin", plugin: "none"},
		{name: "no configuration", code: codes.Unavailable, words: "no"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := node.Prepare(t, node.Options{Network: "cni", CNIConf: badNetwork(t, tc.plugin), Flags: pluginFlags(t, tc.plugin)})
			n.Restart()
			leavesNothing(t, n)
			err := runPod(n, n.Sandbox("bad"), "")
			if status.Code(err) != tc.code || !strings.Contains(status.Convert(err).Message(), tc.words) {
				t.Errorf("error %v, want code %v and %q", err, tc.code, tc.words)
			}
		})
	}
}

// A caller's patience ends, the attempt goes on for a retry to join. A plugin that hangs delays
// nothing else, and is ended with the server that ran it.
func TestPluginThatHangs(t *testing.T) {
	const hangs = `[ "$CNI_COMMAND" = ADD ] && exec sleep 1000; exit 0`
	n := node.Prepare(t, node.Options{Network: "cni", CNIConf: badNetwork(t, hangs), Flags: pluginFlags(t, hangs)})
	n.Restart()
	before, err := leftovers.Take(t.Context(), n.Scope())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(n.Context(), 2*time.Second)
	defer cancel()
	_, err = n.Runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: n.Sandbox("bad")})
	if status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("error %v, want DeadlineExceeded", err)
	}
	pods, err := n.Runtime.ListPodSandbox(n.Context(), &runtimeapi.ListPodSandboxRequest{})
	if err != nil || len(pods.Items) > 0 {
		t.Errorf("pods %v, error %v while a plugin hangs", pods.GetItems(), err)
	}
	n.Stop()
	n.Restart()
	nothingLeft(t, n, before)
}

func TestNetworkIsReadyOnceThereIsAConfiguration(t *testing.T) {
	dir := badNetwork(t, "")
	n := node.Start(t, node.Options{Network: "cni", CNIConf: dir})
	condition := func() *runtimeapi.RuntimeCondition {
		r, err := n.Runtime.Status(n.Context(), &runtimeapi.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range r.Status.Conditions {
			if c.Type == runtimeapi.NetworkReady {
				return c
			}
		}
		t.Fatalf("no NetworkReady in %v", r.Status)
		return nil
	}
	if c := condition(); c.Status || !strings.Contains(c.Message, dir) {
		t.Errorf("without a configuration: %v, want not ready and the directory's name", c)
	}
	node.WriteCNI(t, dir, node.BridgeConf(n.Leases))
	n.Eventually("the network is ready", func() bool { return condition().Status })
}

func runPod(n *node.Node, s *runtimeapi.PodSandboxConfig, handler string) error {
	r, err := n.Runtime.RunPodSandbox(n.Context(), &runtimeapi.RunPodSandboxRequest{Config: s, RuntimeHandler: handler})
	if err == nil {
		n.RemovePod(r.PodSandboxId)
	}
	return err
}

func pull(n *node.Node, ref string) error {
	_, err := n.Images.PullImage(n.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	return err
}

func create(n *node.Node, pod string, c *runtimeapi.ContainerConfig, s *runtimeapi.PodSandboxConfig) error {
	_, err := n.Runtime.CreateContainer(n.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: s})
	return err
}

// inPod makes a sandbox, returns what do returns and removes the sandbox. A sandbox that can't even
// be made gives its own error.
func inPod(n *node.Node, handler string, do func(pod string, s *runtimeapi.PodSandboxConfig) error) error {
	s := n.Sandbox("bad")
	r, err := n.Runtime.RunPodSandbox(n.Context(), &runtimeapi.RunPodSandboxRequest{Config: s, RuntimeHandler: handler})
	if err != nil {
		return err
	}
	defer n.RemovePod(r.PodSandboxId)
	return do(r.PodSandboxId, s)
}

// badNetwork returns a directory with a configuration of the plugin "bad", or an empty one.
func badNetwork(t *testing.T, plugin string) string {
	t.Helper()
	dir := t.TempDir()
	switch plugin {
	case "":
	case "none":
		node.WriteCNI(t, dir, `{"cniVersion":"1.0.0","name":"bad","plugins":[{"type":"absent-plugin"}]}`)
	default:
		node.WriteCNI(t, dir, `{"cniVersion":"1.0.0","name":"bad","plugins":[{"type":"bad"}]}`)
	}
	return dir
}

// pluginFlags puts a plugin "bad" that runs the script where the server finds it.
func pluginFlags(t *testing.T, script string) []string {
	t.Helper()
	dir := t.TempDir()
	version := `[ "$CNI_COMMAND" = VERSION ] && { echo '{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}'; exit 0; }`
	text := "#!/bin/sh\n" + version + "\n" + script + "\n"
	if err := os.WriteFile(filepath.Join(dir, "bad"), []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return []string{"--cni-bin-dir", dir}
}
