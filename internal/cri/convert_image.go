package cri

import (
	"encoding/json"
	"strconv"
	"strings"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/pod"
)

// imageName takes the reference out of an ImageSpec. Whether it is well formed, the store knows.
func imageName(field string, s *runtime.ImageSpec) (string, error) {
	if s.GetImage() == "" {
		return "", invalid(field+".image", "must not be empty")
	}
	return s.GetImage(), checkLine(field+".image", s.GetImage())
}

func pull(req *runtime.PullImageRequest) (*pod.Pull, error) {
	ref, err := imageName("image", req.GetImage())
	if err != nil {
		return nil, err
	}
	return &pod.Pull{
		Ref: ref, Auth: auth(req.GetAuth()), Annotations: cloned(req.GetImage().GetAnnotations()),
	}, nil
}

// auth returns nil for an absent or empty message, which the kubelet sends for "anonymous".
func auth(a *runtime.AuthConfig) *pod.Auth {
	out := pod.Auth{
		Username: a.GetUsername(), Password: a.GetPassword(), Auth: a.GetAuth(), ServerAddress: a.GetServerAddress(),
		IdentityToken: a.GetIdentityToken(), RegistryToken: a.GetRegistryToken(),
	}
	if out == (pod.Auth{ServerAddress: out.ServerAddress}) {
		return nil
	}
	return &out
}

func fromImage(i *pod.Image) *runtime.Image {
	out := &runtime.Image{
		Id: i.ID, RepoTags: i.Tags, RepoDigests: i.Digests, Size: i.Size, Pinned: i.Pinned,
		Spec: &runtime.ImageSpec{Image: i.ID, Annotations: i.Annotations},
	}
	// Uid and Username are mutually exclusive; the group has no place in the CRI.
	user, _, _ := strings.Cut(i.User, ":")
	if uid, err := strconv.ParseInt(user, 10, 64); err == nil {
		out.Uid = &runtime.Int64Value{Value: uid}
	} else {
		out.Username = user
	}
	return out
}

// imageInfo is the verbose answer: the image's configuration, as its author wrote it.
func imageInfo(i *pod.Image) (map[string]string, error) {
	var config any = i.Config
	if json.Valid(i.Config.Raw) {
		config = json.RawMessage(i.Config.Raw)
	}
	details := map[string]any{"labels": i.Labels, "pulledAt": i.Pulled, "imageSpec": config}
	if i.Artifact != "" {
		details["artifactType"] = i.Artifact
	}
	return verbose(details)
}

// verbose puts details under the key "info", where crictl and its users look for them.
func verbose(details any) (map[string]string, error) {
	b, err := json.Marshal(details)
	if err != nil {
		return nil, err
	}
	return map[string]string{"info": string(b)}, nil
}

func fromUsages(list []pod.Usage) []*runtime.FilesystemUsage {
	var out []*runtime.FilesystemUsage
	for _, u := range list {
		out = append(out, &runtime.FilesystemUsage{
			Timestamp:  u.At.UnixNano(),
			FsId:       &runtime.FilesystemIdentifier{Mountpoint: u.Mountpoint},
			UsedBytes:  &runtime.UInt64Value{Value: u.Bytes},
			InodesUsed: &runtime.UInt64Value{Value: u.Inodes},
		})
	}
	return out
}
