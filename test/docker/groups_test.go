package docker_test

import (
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/labdocker"
	"gantry/test/node"
)

// TestGroupsOfTheImage holds a container to its policy of groups, though Docker has its own: the image's
// user 1000 is in the groups 500 and 501.
func TestGroupsOfTheImage(t *testing.T) {
	merge, strict := runtimeapi.SupplementalGroupsPolicy_Merge, runtimeapi.SupplementalGroupsPolicy_Strict
	for _, v := range labdocker.Versions() {
		t.Run(string(v), func(t *testing.T) {
			d := labdocker.Start(t, labdocker.Options{Version: v})
			n := node.Start(t, node.Options{Flags: []string{"--engine", "docker", "--docker-endpoint", d.Endpoint()}})
			image := d.Busybox()
			for _, c := range []groupsCase{
				{"Strict with a group", strict, &runtimeapi.Int64Value{Value: 1001}, "1001 7"}, // the image's first: it is made twice
				{"Strict without a group", strict, nil, "1000 7"},
				{"Merge with a group", merge, &runtimeapi.Int64Value{Value: 1001}, "1001 500 501 7"},
				{"Merge without a group", merge, nil, "1000 500 501 7"},
			} {
				t.Run(c.rule, func(t *testing.T) { c.check(n.For(t), image) })
			}
		})
	}
}

type groupsCase struct {
	rule   string
	policy runtimeapi.SupplementalGroupsPolicy
	group  *runtimeapi.Int64Value
	want   string
}

func (g groupsCase) check(n *node.Node, image string) {
	t := n.T()
	c := node.Container("main", image, idle...)
	sec := c.Linux.SecurityContext
	sec.RunAsUser, sec.RunAsGroup = &runtimeapi.Int64Value{Value: 1000}, g.group
	sec.SupplementalGroups, sec.SupplementalGroupsPolicy = []int64{7}, g.policy
	pod, container := launch(n, "groups", "", c)
	inside := func(command ...string) []string {
		got := strings.Fields(n.Exec(container, command...))
		slices.Sort(got)
		return slices.Compact(got)
	}
	wanted := strings.Fields(g.want)
	slices.Sort(wanted)
	if got := inside("id", "-G"); !slices.Equal(got, wanted) {
		t.Errorf("an exec has the groups %v, want %v", got, wanted)
	}
	if got := inside("sh", "-c", "grep Groups: /proc/1/status | cut -f2; grep Gid: /proc/1/status | cut -f2"); !slices.Equal(got, wanted) {
		t.Errorf("the main process has the groups %v, want %v", got, wanted)
	}
	n.RemovePod(pod)
}
