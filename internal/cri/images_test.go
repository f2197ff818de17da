package cri_test

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/pod"
)

func TestListImages(t *testing.T) {
	for ref, want := range map[string]int{"": 1, "example.org/app:1": 1, "sha256:abc": 1, "none": 0} {
		req := &runtime.ListImagesRequest{Filter: &runtime.ImageFilter{Image: &runtime.ImageSpec{Image: ref}}}
		res, err := service(node()).ListImages(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		if len(res.GetImages()) != want {
			t.Errorf("%q: %v", ref, res.GetImages())
		}
	}
}

func TestImageUser(t *testing.T) {
	for _, c := range []struct {
		rule, user string
		uid        *runtime.Int64Value
		name       string
	}{
		{"a number is a UID", "1000", &runtime.Int64Value{Value: 1000}, ""},
		{"root by number is a UID", "0", &runtime.Int64Value{}, ""},
		{"a group is left out", "1000:100", &runtime.Int64Value{Value: 1000}, ""},
		{"a name is a name", "app:app", nil, "app"},
		{"no user is none", "", nil, ""},
	} {
		t.Run(c.rule, func(t *testing.T) {
			m := &memory{images: []*pod.Image{{ID: "i", User: c.user}}}
			res, err := service(m).ImageStatus(t.Context(), &runtime.ImageStatusRequest{Image: &runtime.ImageSpec{Image: "i"}})
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(c.uid, res.GetImage().GetUid(), protocmp.Transform()); d != "" || res.GetImage().GetUsername() != c.name {
				t.Errorf("%v", res.GetImage())
			}
		})
	}
}

func TestImageStatusShowsTheConfiguration(t *testing.T) {
	m := &memory{images: []*pod.Image{{ID: "i", Config: pod.ImageConfig{Raw: []byte(`{"architecture":"amd64"}`)}}}}
	res, err := service(m).ImageStatus(t.Context(), &runtime.ImageStatusRequest{Image: &runtime.ImageSpec{Image: "i"}, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	var info struct {
		Spec struct {
			Architecture string `json:"architecture"`
		} `json:"imageSpec"`
	}
	if err := json.Unmarshal([]byte(res.GetInfo()["info"]), &info); err != nil || info.Spec.Architecture != "amd64" {
		t.Errorf("%v: %s", err, res.GetInfo()["info"])
	}
}

func TestPullImage(t *testing.T) {
	m := &memory{status: pod.NodeStatus{Handlers: []string{"", "crun"}}}
	res, err := service(m).PullImage(t.Context(), &runtime.PullImageRequest{
		Image: &runtime.ImageSpec{Image: "example.org/app:1", RuntimeHandler: "crun"}, SandboxConfig: sandboxConfig(),
		Auth: &runtime.AuthConfig{Username: "u", Password: "p"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if res.GetImageRef() != "sha256:pulled" || m.pulledBy != "u1" || m.pulled.Ref != "example.org/app:1" || *m.pulled.Auth != (pod.Auth{Username: "u", Password: "p"}) {
		t.Errorf("%v: %q %+v", res, m.pulledBy, m.pulled)
	}
}

// The kubelet sends an empty message, at most with the server's address, for "no credentials".
func TestPullWithoutCredentialsIsAnonymous(t *testing.T) {
	for _, auth := range []*runtime.AuthConfig{nil, {}, {ServerAddress: "example.org"}} {
		m := &memory{}
		if _, err := service(m).PullImage(t.Context(), &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: "a"}, Auth: auth}); err != nil {
			t.Fatal(err)
		}
		if m.pulled.Auth != nil {
			t.Errorf("%v became %+v", auth, m.pulled.Auth)
		}
	}
}

func TestImageFsInfo(t *testing.T) {
	res, err := service(&memory{}).ImageFsInfo(t.Context(), &runtime.ImageFsInfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	want := []*runtime.FilesystemUsage{{
		Timestamp: 3e9, FsId: &runtime.FilesystemIdentifier{Mountpoint: "/images"},
		UsedBytes: &runtime.UInt64Value{Value: 10}, InodesUsed: &runtime.UInt64Value{Value: 2},
	}}
	if d := cmp.Diff(want, res.GetImageFilesystems(), protocmp.Transform()); d != "" {
		t.Error(d)
	}
	if len(res.GetContainerFilesystems()) != 1 {
		t.Errorf("%v", res)
	}
}
