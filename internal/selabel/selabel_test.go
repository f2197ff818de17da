package selabel_test

import (
	"errors"
	"regexp"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"gantry/internal/pod"
	"gantry/internal/selabel"
)

// policy is Fedora's.
func policy() selabel.Policy {
	return selabel.Policy{Process: "system_u:system_r:container_t:s0", File: "system_u:object_r:container_file_t:s0"}
}

func TestLabelsOfContainers(t *testing.T) {
	const ownLevel = "s0:c10,c20"
	own := selabel.Labels{Process: "system_u:system_r:container_t:" + ownLevel, Mount: "system_u:object_r:container_file_t:" + ownLevel}
	for rule, tt := range map[string]struct {
		options        *pod.SELinux
		process, mount string
	}{
		"nothing said: the pod's":          {nil, own.Process, own.Mount},
		"an empty one says nothing":        {&pod.SELinux{}, own.Process, own.Mount},
		"a type, with the pod's level":     {&pod.SELinux{Type: "spc_t"}, "system_u:system_r:spc_t:" + ownLevel, own.Mount},
		"files have the user and level":    {&pod.SELinux{User: "u", Role: "r", Type: "t", Level: "s0:c7"}, "u:r:t:s0:c7", "u:object_r:container_file_t:s0:c7"},
		"a range of levels and categories": {&pod.SELinux{Level: "s0-s0:c0.c1023,c5"}, "system_u:system_r:container_t:s0-s0:c0.c1023,c5", "system_u:object_r:container_file_t:s0-s0:c0.c1023,c5"},
	} {
		t.Run(rule, func(t *testing.T) {
			got, err := selabel.New(policy()).Container("c", &pod.Security{SELinux: tt.options}, own)
			if err != nil || got != (selabel.Labels{Process: tt.process, Mount: tt.mount}) {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
}

func TestWhatIsNoLabelIsRefused(t *testing.T) {
	for field, options := range map[string]*pod.SELinux{
		"level": {Level: "s0,c1"}, "type": {Type: "a:b"}, "user": {User: "a b"}, "role": {Role: `a"`},
	} {
		_, err := selabel.New(policy()).Pod("p", &pod.Security{SELinux: options})
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "selinux_options: "+field) {
			t.Errorf("%+v: %v", options, err)
		}
	}
}

func TestWithoutSELinuxOnlyWhatDependsOnItIsRefused(t *testing.T) {
	book := selabel.New(selabel.Policy{Missing: "the kernel has no SELinux"})
	for rule, tt := range map[string]struct {
		security pod.Security
		refused  bool
	}{
		"nothing said":                     {pod.Security{}, false},
		"an empty label":                   {pod.Security{SELinux: &pod.SELinux{}}, false},
		"what nothing confines":            {pod.Security{SELinux: &pod.SELinux{Type: "spc_t", Level: "s0"}}, false},
		"privileged: no label at any rate": {pod.Security{Privileged: true, SELinux: &pod.SELinux{Type: "t"}}, false},
		"a type":                           {pod.Security{SELinux: &pod.SELinux{Type: "container_t"}}, true},
		"categories":                       {pod.Security{SELinux: &pod.SELinux{Level: "s0:c1,c2"}}, true},
	} {
		labels, err := book.Pod("p", &tt.security)
		if errdefs.IsFailedPrecondition(err) != tt.refused || labels != (selabel.Labels{}) {
			t.Errorf("%s: %+v, %v", rule, labels, err)
		}
		if tt.refused && !strings.Contains(err.Error(), "the kernel has no SELinux") {
			t.Errorf("%s: %v does not say why", rule, err)
		}
	}
}

var pair = regexp.MustCompile(`:s0:c\d+,c\d+$`)

func TestNoTwoPodsHaveTheSameCategories(t *testing.T) {
	before, after := selabel.New(policy()), selabel.New(policy())
	seen := make(map[string]pod.Key)
	give := func(book *selabel.Book, key pod.Key) {
		l, err := book.Pod(key, new(pod.Security))
		if err != nil || !pair.MatchString(l.Process) || !pair.MatchString(l.Mount) {
			t.Fatalf("%+v, %v", l, err)
		}
		if other, is := seen[l.Process]; is {
			t.Fatalf("%s and %s have %s", key, other, l.Process)
		}
		seen[l.Process] = key
		after.Recover(key, l)
	}
	name := func(i int) pod.Key { return pod.Key(strings.Repeat("x", i+1)) }
	for i := range 300 {
		give(before, name(i))
	}
	for i := range 300 { // the next server, which found the others' records
		give(after, "y"+name(i))
	}
}

func TestReleasedCategoriesStayWithWhoeverElseHasThem(t *testing.T) {
	book := selabel.New(policy())
	of, err := book.Pod("pod", new(pod.Security))
	if err != nil {
		t.Fatal(err)
	}
	if _, err = book.Container("container", new(pod.Security), of); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		release pod.Key
		left    bool
	}{{"pod", true}, {"pod", true}, {"container", false}} {
		book.Release(step.release)
		if got := book.Taken(of); got != step.left {
			t.Errorf("after the release of %s: taken is %t", step.release, got)
		}
	}
}

func TestFilesAreRelabelled(t *testing.T) {
	done := make(map[string]string)
	p := policy()
	p.Relabel = func(path, label string) error {
		if path == "/etc" {
			return errdefs.ErrInvalidArgument
		}
		done[path] = label
		return nil
	}
	book := selabel.New(p)
	if err := book.Relabel("/data", selabel.Labels{Mount: "m"}); err != nil || done["/data"] != "m" {
		t.Errorf("%v, %v", done, err)
	}
	if err := book.Relabel("/etc", selabel.Labels{Mount: "m"}); !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), "selinux_relabel: /etc") {
		t.Errorf("of /etc: %v", err)
	}
	if err := book.Relabel("/other", selabel.Labels{}); err != nil || len(done) != 1 {
		t.Errorf("without labels: %v, %v", done, err)
	}
}

func TestTheOperatorTurnsLabelsOff(t *testing.T) {
	if p := selabel.Node(false); p.Process != "" || !strings.Contains(p.Missing, "selinux.enabled") {
		t.Errorf("%+v", p)
	}
}
