package e2e_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/test/node"
)

func TestExitCodesAndReasons(t *testing.T) {
	for _, env := range environments[:2] {
		t.Run(env.name, func(t *testing.T) {
			n := node.Start(t, env.options)
			ref := warm(t, n)
			leavesNothing(t, n)
			for _, tc := range []struct {
				name, script, reason string
				code                 int32
				change               func(*runtimeapi.LinuxContainerConfig)
			}{
				{name: "exit code 0 is Completed", script: "exit 0", reason: "Completed"},
				{name: "any other exit code is Error", script: "exit 42", code: 42, reason: "Error"},
				// Process 1 of a PID namespace ignores signals from inside it, so this one is not.
				{name: "a signal is 128 and its number", script: "kill -USR1 $$; sleep 10", code: 138, reason: "Error",
					change: func(c *runtimeapi.LinuxContainerConfig) {
						c.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_NODE
					}},
				{name: "no memory left is OOMKilled", script: "exec tail -c 100m /dev/zero", code: 137, reason: "OOMKilled",
					change: func(c *runtimeapi.LinuxContainerConfig) {
						c.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 16 << 20, MemorySwapLimitInBytes: 16 << 20}
					}},
			} {
				t.Run(tc.name, func(t *testing.T) {
					n := n.For(t)
					config := node.Container("ends", ref, "sh", "-c", tc.script)
					if tc.change != nil {
						tc.change(config.Linux)
					}
					before := time.Now()
					pod, container := n.Launch(n.Sandbox("ends"), config)
					defer n.RemovePod(pod)
					s := n.Ended(container)
					if s.ExitCode != tc.code || s.Reason != tc.reason {
						t.Errorf("exit code %d, reason %s; want %d, %s", s.ExitCode, s.Reason, tc.code, tc.reason)
					}
					if times := []int64{before.UnixNano(), s.CreatedAt, s.StartedAt, s.FinishedAt, time.Now().UnixNano()}; !slices.IsSorted(times) {
						t.Errorf("times are out of order: %v", times)
					}
				})
			}
		})
	}
}

func TestStopGivesTheGracePeriodAndThenKills(t *testing.T) {
	n := node.Start(t, node.Options{})
	ref := warm(t, n)
	leavesNothing(t, n)
	for _, tc := range []struct {
		name, script string
		signal       runtimeapi.Signal
		grace        time.Duration
		code         int32
		atLeast      time.Duration
		below        time.Duration
	}{
		{name: "a handler ends within the grace period", script: "trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done", grace: 30 * time.Second, code: 9, below: 20 * time.Second},
		{name: "a deaf process is killed after the grace period", script: "trap '' TERM; echo ready; while :; do sleep 0.05; done", grace: 2 * time.Second, code: 137, atLeast: 2 * time.Second, below: 20 * time.Second},
		{name: "no grace period kills at once", script: "trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done", code: 137, below: 20 * time.Second},
		{name: "the stop signal asked for is sent", script: "trap 'exit 5' USR1; trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done", signal: runtimeapi.Signal_SIGNAL_SIGUSR1, grace: 30 * time.Second, code: 5, below: 20 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := n.For(t)
			config := node.Container("stops", ref, "sh", "-c", tc.script)
			config.StopSignal = tc.signal
			pod, container := n.Launch(n.Sandbox("stops"), config)
			defer n.RemovePod(pod)
			n.Eventually("the container is ready", func() bool { return strings.Contains(n.ReadLog(container), "ready") })
			began := time.Now()
			n.StopContainer(container, tc.grace)
			if took := time.Since(began); took < tc.atLeast || took > tc.below {
				t.Errorf("stop took %v, want between %v and %v", took, tc.atLeast, tc.below)
			}
			if s := n.Container(container); s.State != runtimeapi.ContainerState_CONTAINER_EXITED || s.ExitCode != tc.code {
				t.Errorf("%v with exit code %d, want exited with %d", s.State, s.ExitCode, tc.code)
			}
		})
	}
}

func TestPodThatSharesItsPIDNamespace(t *testing.T) {
	n := node.Start(t, node.Options{})
	ref := warm(t, n)
	leavesNothing(t, n)
	sandbox := n.Sandbox("shared")
	sandbox.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	pod := n.RunPod(sandbox)
	var ids []string
	for _, name := range []string{"first", "second"} {
		config := node.Container(name, ref, "sh", "-c", "sleep 4711 & exec sleep 4712")
		config.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
		id := n.Create(pod, config, sandbox)
		n.StartContainer(id)
		ids = append(ids, id)
	}
	seen := func() int { return strings.Count(n.Exec(ids[0], "ps"), "sleep 471") }
	n.Eventually("each container sees both containers' processes", func() bool { return seen() == 4 })
	n.StopContainer(ids[1], 0)
	n.Eventually("a stopped container's children end with it", func() bool { return seen() == 2 })
	n.RemovePod(pod)
}

func TestRepeatsAreIdempotent(t *testing.T) {
	n := node.Start(t, node.Options{})
	ref := warm(t, n)
	leavesNothing(t, n)
	sandbox := n.Sandbox("twice")
	config := node.Container("twice", ref, "sleep", "100000")
	pod := n.RunPod(sandbox)
	if again := n.RunPod(sandbox); again != pod {
		t.Errorf("RunPodSandbox again gave %s, want %s", again, pod)
	}
	container := n.Create(pod, config, sandbox)
	if again := n.Create(pod, config, sandbox); again != container {
		t.Errorf("CreateContainer again gave %s, want %s", again, container)
	}
	n.StartContainer(container)
	n.Pull(ref)
	for range 2 {
		n.StopContainer(container, 0)
	}
	for range 2 {
		if _, err := n.Runtime.RemoveContainer(n.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: container}); err != nil {
			t.Errorf("remove container: %v", err)
		}
	}
	for range 2 {
		n.RemovePod(pod)
	}
}

func TestListsFilter(t *testing.T) {
	n := node.Start(t, node.Options{})
	ref := warm(t, n)
	type made struct{ pod, container string }
	var all []made
	for _, name := range []string{"one", "two"} {
		pod, container := n.Launch(n.Sandbox(name), node.Container("main", ref, "sleep", "100000"))
		all = append(all, made{pod, container})
	}
	t.Cleanup(func() {
		for _, m := range all {
			n.RemovePod(m.pod)
		}
	})
	ready := &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}
	notReady := &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY}
	running := &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}
	exited := &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_EXITED}
	for _, tc := range []struct {
		name   string
		filter *runtimeapi.PodSandboxFilter
		want   int
	}{
		{"no filter", nil, 2},
		{"by id", &runtimeapi.PodSandboxFilter{Id: all[0].pod}, 1},
		{"by label", &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"app": "two"}}, 1},
		{"by a label nobody has", &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"app": "three"}}, 0},
		{"by state", &runtimeapi.PodSandboxFilter{State: ready}, 2},
		{"by another state", &runtimeapi.PodSandboxFilter{State: notReady}, 0},
		{"by all of them", &runtimeapi.PodSandboxFilter{Id: all[0].pod, State: ready, LabelSelector: map[string]string{"app": "two"}}, 0},
	} {
		t.Run("pods "+tc.name, func(t *testing.T) {
			r, err := n.Runtime.ListPodSandbox(n.Context(), &runtimeapi.ListPodSandboxRequest{Filter: tc.filter})
			if err != nil || len(r.Items) != tc.want {
				t.Errorf("%d pods, error %v; want %d", len(r.GetItems()), err, tc.want)
			}
		})
	}
	for _, tc := range []struct {
		name   string
		filter *runtimeapi.ContainerFilter
		want   int
	}{
		{"no filter", nil, 2},
		{"by id", &runtimeapi.ContainerFilter{Id: all[1].container}, 1},
		{"by pod", &runtimeapi.ContainerFilter{PodSandboxId: all[1].pod}, 1},
		{"by label", &runtimeapi.ContainerFilter{LabelSelector: map[string]string{"part": "main"}}, 2},
		{"by state", &runtimeapi.ContainerFilter{State: running}, 2},
		{"by another state", &runtimeapi.ContainerFilter{State: exited}, 0},
		{"by id and another's pod", &runtimeapi.ContainerFilter{Id: all[1].container, PodSandboxId: all[0].pod}, 0},
	} {
		t.Run("containers "+tc.name, func(t *testing.T) {
			r, err := n.Runtime.ListContainers(n.Context(), &runtimeapi.ListContainersRequest{Filter: tc.filter})
			if err != nil || len(r.Containers) != tc.want {
				t.Errorf("%d containers, error %v; want %d", len(r.GetContainers()), err, tc.want)
			}
		})
	}
}

func TestStatusSaysWhatWasAskedFor(t *testing.T) {
	n := node.Start(t, node.Options{})
	ref := warm(t, n)
	sandbox := n.Sandbox("said")
	config := node.Container("main", ref, "sleep", "100000")
	config.Annotations = map[string]string{"some": "note"}
	pod, container := n.Launch(sandbox, config)
	t.Cleanup(func() { n.RemovePod(pod) })

	p := n.Pod(pod)
	if p.Metadata.Uid != sandbox.Metadata.Uid || p.Labels["app"] != "said" || p.Annotations["lab/note"] != "kept as given" {
		t.Errorf("pod status has lost its metadata: %v", p)
	}
	if p.Network.GetIp() == "" || len(p.Network.GetAdditionalIps()) == 0 {
		t.Errorf("network %v, want an IPv4 and an IPv6 address", p.Network)
	}
	c := n.Container(container)
	if c.ImageRef == "" || c.ImageRef != c.ImageId || c.Image.GetImage() == "" || c.Annotations["some"] != "note" {
		t.Errorf("container status has lost something: %v", c)
	}
	if want := sandbox.LogDirectory + "/main_0.log"; c.LogPath != want {
		t.Errorf("log path %s, want %s", c.LogPath, want)
	}
}
