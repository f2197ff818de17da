package e2e_test

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"testing"

	"gantry/test/node"
)

// TestClientOfV1alpha2 runs a program that was generated from the CRI before v1.
func TestClientOfV1alpha2(t *testing.T) {
	n := node.Start(t, node.Options{})
	ref := warm(t, n)
	pod, _ := n.Launch(n.Sandbox("seen"), node.Container("main", ref, "sleep", "100000"))
	t.Cleanup(func() { n.RemovePod(pod) })

	out, err := exec.CommandContext(t.Context(), node.Tool(t, "v1alpha2"), filepath.Join(n.State, "gantry.sock")).Output()
	if err != nil {
		t.Fatalf("v1alpha2 client: %v", err)
	}
	var answers struct {
		Version struct {
			RuntimeAPIVersion string `json:"runtime_api_version"`
		} `json:"version"`
		Pods   []struct{ ID string } `json:"pods"`
		Images []struct {
			RepoTags []string `json:"repo_tags"`
		} `json:"images"`
	}
	if err = json.Unmarshal(out, &answers); err != nil {
		t.Fatalf("answer %s: %v", out, err)
	}
	if answers.Version.RuntimeAPIVersion != "v1alpha2" {
		t.Errorf("API version %q, want v1alpha2", answers.Version.RuntimeAPIVersion)
	}
	if len(answers.Pods) != 1 || answers.Pods[0].ID != pod {
		t.Errorf("pods %v, want %s", answers.Pods, pod)
	}
	if len(answers.Images) != 1 || len(answers.Images[0].RepoTags) != 1 || answers.Images[0].RepoTags[0] != ref {
		t.Errorf("images %v, want %s", answers.Images, ref)
	}
	contains(t, "the log names the method that was called", node.ReadFile(t, n.Log), "method=runtime.v1alpha2.ImageService/ListImages")
}
