package manifest_test

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"sigs.k8s.io/yaml"

	"gantry/cmd/gantry/internal/manifest"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var options = manifest.Options{
	UID: "0b1c2d3e-uid", FirstID: 1 << 30, Dir: "/pods/0b1c", MemoryDir: "/mem/0b1c",
	ResolvConf: []byte("nameserver 192.0.2.1\nsearch old.example\nsearch example.org\noptions ndots:2 edns0\n"),
}

// TestGolden writes what each manifest of testdata becomes as YAML beside it.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.pod.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			p, err := manifest.Parse(data, options)
			if err != nil {
				t.Fatal(err)
			}
			got := render(t, p)
			golden := strings.TrimSuffix(file, ".pod.yaml") + ".golden.yaml"
			if *update {
				if err = os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

type container struct {
	Config  any
	Pull    string
	Sidecar bool `json:",omitempty"`
	NonRoot bool `json:",omitempty"`
}

func render(t *testing.T, p *manifest.Pod) []byte {
	t.Helper()
	conv := func(in []manifest.Container) (out []container) {
		for _, c := range in {
			out = append(out, container{plain(t, c.Config), string(c.Pull), c.Sidecar, c.NonRoot})
		}
		return out
	}
	out, err := yaml.Marshal(map[string]any{
		"sandbox": plain(t, p.Sandbox), "handler": p.Handler, "init": conv(p.Init), "containers": conv(p.Containers),
		"volumes": p.Volumes, "grace": p.Grace.String(), "notes": p.Notes,
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// plain goes through a map: protojson's own spacing differs from run to run on purpose.
func plain(t *testing.T, m proto.Message) any {
	t.Helper()
	data, err := protojson.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var v any
	if err := yaml.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func pod(spec string) string {
	return "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n" + spec
}

func one(container string) string {
	return pod("  containers:\n  - {name: a, image: busybox, " + container + "}\n")
}

func TestRefusals(t *testing.T) {
	tests := map[string]struct{ in, want string }{
		"unknown field":                {one("imagee: x"), `unknown field "spec.containers[0].imagee"`},
		"no pod":                       {"apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n", `"Deployment" of "apps/v1" is no pod`},
		"another kind":                 {"apiVersion: v1\nkind: Service\nmetadata: {name: x}\n", `"Service" of "v1" is no pod`},
		"two documents":                {one("tty: true") + "---\n" + one("tty: true"), "there are 2 documents"},
		"empty file":                   {"# nothing\n", "there are 0 documents"},
		"no name":                      {"apiVersion: v1\nkind: Pod\nspec: {containers: [{name: a, image: b}]}\n", "metadata.name is missing"},
		"no containers":                {pod("  restartPolicy: Never\n"), "spec.containers is empty"},
		"no image":                     {pod("  containers: [{name: a}]\n"), "container a: image is missing"},
		"a name twice":                 {pod("  containers: [{name: a, image: b}, {name: a, image: b}]\n"), "two containers are named a"},
		"configMap volume":             {pod("  volumes: [{name: v, configMap: {name: c}}]\n  containers: [{name: a, image: b}]\n"), "volume v: configMap is not supported: only emptyDir, hostPath and image are"},
		"volume of no kind":            {pod("  volumes: [{name: v}]\n  containers: [{name: a, image: b}]\n"), "volume v: a volume of no kind"},
		"relative hostPath":            {pod("  volumes: [{name: v, hostPath: {path: etc}}]\n  containers: [{name: a, image: b}]\n"), `volume v: hostPath "etc" is not an absolute path`},
		"volume name leaves directory": {pod("  volumes: [{name: .., emptyDir: {}}]\n  containers: [{name: a, image: b}]\n"), `volume name ".."`},
		"unknown volume":               {one("volumeMounts: [{name: v, mountPath: /v}]"), "container a: volumeMount v: the pod has no such volume"},
		"subPath leaves the volume": {pod("  volumes: [{name: v, emptyDir: {}}]\n  containers: [{name: a, image: b, volumeMounts: [{name: v, mountPath: /v, subPath: ../x}]}]\n"),
			`subPath "../x" leaves the volume`},
		"envFrom":                      {one("envFrom: [{secretRef: {name: s}}]"), "not supported: container a: envFrom"},
		"secret in env":                {one("env: [{name: E, valueFrom: {secretKeyRef: {name: s, key: k}}}]"), "env E: valueFrom.secretKeyRef is not supported"},
		"status field in env":          {one("env: [{name: E, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]"), "fieldRef status.podIP is not supported"},
		"lifecycle hook":               {one("lifecycle: {preStop: {exec: {command: [x]}}}"), "not supported: container a: lifecycle"},
		"device of a plugin":           {one(`resources: {limits: {nvidia.com/gpu: "1"}}`), "resources.limits: nvidia.com/gpu is not supported"},
		"host users off, host network": {pod("  hostUsers: false\n  hostNetwork: true\n  containers: [{name: a, image: b}]\n"), "hostUsers: false and hostNetwork, hostPID or hostIPC exclude each other"},
		"image volume without one":     {pod("  volumes: [{name: v, image: {}}]\n  containers: [{name: a, image: b}]\n"), "volume v: image: reference is missing"},
		"image volume's sub path":      {pod("  volumes: [{name: v, image: {reference: r}}]\n  containers: [{name: a, image: b, volumeMounts: [{name: v, mountPath: /v, subPath: ../x}]}]\n"), `subPath "../x" leaves the volume`},
		"claimed devices (CDI)":        {pod("  resourceClaims: [{name: gpu, resourceClaimName: g}]\n  containers: [{name: a, image: b}]\n"), "not supported: resourceClaims"},
		"a container's claim (CDI)":    {one("resources: {claims: [{name: gpu}]}"), "not supported: container a: resources"},
		"image pull secrets":           {pod("  imagePullSecrets: [{name: s}]\n  containers: [{name: a, image: b}]\n"), "not supported: imagePullSecrets"},
		"root that must not be":        {one("securityContext: {runAsNonRoot: true, runAsUser: 0}"), "runAsNonRoot and runAsUser: 0 exclude each other"},
		"localhost seccomp":            {one("securityContext: {seccompProfile: {type: Localhost}}"), "seccompProfile: localhostProfile is missing"},
		"unknown seccomp":              {one("securityContext: {seccompProfile: {type: Best}}"), `seccompProfile: type "Best" is not`},
		"pid of host and pod":          {pod("  hostPID: true\n  shareProcessNamespace: true\n  containers: [{name: a, image: b}]\n"), "exclude each other"},
		"dns none without servers":     {pod("  dnsPolicy: None\n  containers: [{name: a, image: b}]\n"), "dnsPolicy None needs nameservers"},
		"host port on host network":    {pod("  hostNetwork: true\n  containers: [{name: a, image: b, ports: [{containerPort: 80, hostPort: 81}]}]\n"), "hostPort 81 differs from containerPort 80"},
		"protocol":                     {one("ports: [{containerPort: 80, protocol: QUIC}]"), `protocol "QUIC"`},
		"privileged but no gain":       {one("securityContext: {privileged: true, allowPrivilegeEscalation: false}"), "exclude each other"},
		"init container that repeats":  {pod("  initContainers: [{name: i, image: b, restartPolicy: Never}]\n  containers: [{name: a, image: b}]\n"), `restartPolicy "Never" is not Always`},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := manifest.Parse([]byte(tt.in), options)
			if err == nil {
				t.Fatal("accepted")
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got  %v\nwant %s", err, tt.want)
			}
		})
	}
}

func TestPullPolicyFollowsTheTag(t *testing.T) {
	for image, want := range map[string]string{
		"busybox": "Always", "busybox:latest": "Always", "busybox:1.36": "IfNotPresent",
		"localhost:5000/busybox": "Always", "localhost:5000/busybox:1": "IfNotPresent",
		"busybox@sha256:0000000000000000000000000000000000000000000000000000000000000000": "IfNotPresent",
	} {
		p, err := manifest.Parse([]byte(pod("  containers: [{name: a, image: '"+image+"'}]\n")), options)
		if err != nil {
			t.Fatal(err)
		}
		if got := string(p.Containers[0].Pull); got != want {
			t.Errorf("%s: %s, want %s", image, got, want)
		}
	}
}

func TestExpansion(t *testing.T) {
	const in = `env: [{name: A, value: x}, {name: B, value: "$(A)y"}, {name: C, value: "$(D)"}], command: ["$(A)", "$$(A)", "$(UNKNOWN)", "$(B", "$", "a$$b$(B)$(C)"]`
	p, err := manifest.Parse([]byte(one(in)), options)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"x", "$(A)", "$(UNKNOWN)", "$(B", "$", "a$bxy$(D)"}
	if diff := cmp.Diff(want, p.Containers[0].Config.Command); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/*.pod.yaml")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := manifest.Parse(data, options)
		if err == nil && (p.Sandbox == nil || len(p.Containers) == 0) {
			t.Errorf("accepted as %+v", p)
		}
	})
}
