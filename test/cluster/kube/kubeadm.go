package kube

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"gantry/internal/labimage"
)

// CRISocket is what kubeadm is told of gantry, OldSocket of the containerd that OldRuntime starts.
const (
	CRISocket = "unix://" + socket
	OldSocket = "unix://" + oldSocket

	oldSocket = "/run/containerd/containerd.sock"
)

// Kubeadm returns a cluster of bare nodes, on which kubeadm is at work: they have gantry, a registry with the images that
// kubeadm pulls, and a kubelet that starts when kubeadm has configured it, as its Debian package has it.
func Kubeadm(t testing.TB, nodes int) *Cluster {
	t.Helper()
	c := prepare(t, Options{Nodes: nodes, Network: "cni"})
	c.pushControlPlane()
	for i := range nodes {
		n := c.bareNode(i + 1)
		c.Nodes = append(c.Nodes, n)
		_, err := n.Run("bash", "-c", etcOfItsOwn, "etc", c.dir(n.Name+"/etc"))
		c.check("/etc of "+n.Name, err)
		n.Kubelet = run(t, c.Logs, "kubelet-"+n.Name, func() *exec.Cmd {
			return n.Command("bash", "-c", kubeadmKubelet, "kubelet", Program(t, "kubelet"), n.cgroup)
		})
	}
	c.connectNodes()
	return c
}

// etcOfItsOwn gives a node an /etc that it may change.
const etcOfItsOwn = `mkdir -p "$1"/{new,work} && mount -t overlay -o "lowerdir=/etc,upperdir=$1/new,workdir=$1/work" overlay /etc`

// kubeadmKubelet is the service of kubeadm's package: its files appear while kubeadm runs, the configuration last. That is
// the cluster's, so what the nodes of one machine must not share is a flag.
const kubeadmKubelet = `until [[ -s /var/lib/kubelet/config.yaml ]]; do sleep 0.2; done
. /var/lib/kubelet/kubeadm-flags.env
exec "$1" --bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf --kubeconfig=/etc/kubernetes/kubelet.conf \
	--config=/var/lib/kubelet/config.yaml --cgroup-root="$2" $KUBELET_KUBEADM_ARGS`

// pushControlPlane pushes what a control plane of kubeadm's is made of, and stand-ins for what it only pulls.
func (c *Cluster) pushControlPlane() {
	c.t.Helper()
	out, err := exec.Command(Program(c.t, "kubeadm"), "config", "images", "list", "--kubernetes-version", kubernetesVersion, "--image-repository", registry).Output()
	c.check("images of kubeadm", err)
	for ref := range strings.FieldsSeq(string(out)) {
		name := strings.TrimPrefix(ref, registry+"/")
		program, _, _ := strings.Cut(name, ":")
		var img v1.Image
		switch program {
		case "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler":
			img, err = c.programImage(program, "usr/local/bin/"+program)
		default:
			img, err = labimage.Busybox()
		}
		c.check("image "+name, err)
		_, err = c.Registry.Push(name, img)
		c.check("image "+name, err)
	}
}

// kubernetesVersion is that of the programs.
const kubernetesVersion = "v1.36.3"

// kubeadmConfig is what the cluster wants otherwise than kubeadm has it, because of the machine: cgroup v1 without
// systemd, and directories that are the node's alone.
func (n *Node) kubeadmConfig(runtime string) string {
	return fmt.Sprintf(`apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
localAPIEndpoint: {advertiseAddress: %[1]s}
nodeRegistration:
  name: %[2]s
  criSocket: %[3]s
  kubeletExtraArgs: [{name: node-ip, value: %[1]s}]
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
kubernetesVersion: %[4]s
imageRepository: %[5]s
networking: {podSubnet: %[6]s, serviceSubnet: %[7]s}
etcd: {local: {dataDir: %[8]s/etcd}}
controllerManager: {extraArgs: [{name: flex-volume-plugin-dir, value: %[8]s/flex}]}
---
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
failSwapOn: false
resolvConf: ""
`, n.IP, n.Name, runtime, kubernetesVersion, registry, podCIDR, serviceCIDR, n.Root)
}

// KubeadmConfig writes a file for kubeadm init --config, which names the runtime's socket.
func (n *Node) KubeadmConfig(runtime string) string {
	return n.c.write(n.Name+"/kubeadm.yaml", n.kubeadmConfig(runtime))
}

// OldRuntime starts a containerd beside gantry, with the same network and registries.
func (n *Node) OldRuntime() *Process {
	n.c.t.Helper()
	p := n.daemon("old-containerd", "containerd", "--config", n.peerConfig(oldSocket), "--log-level", "warn")
	n.await(p, func() error {
		_, err := n.CrictlOf(OldSocket, "version")
		return err
	})
	return p
}

// Kubeadm runs kubeadm on the node.
func (n *Node) Kubeadm(ctx context.Context, args ...string) (string, error) {
	path := "PATH=" + filepath.Dir(Program(n.c.t, "kubeadm")) + ":/usr/sbin:/usr/bin:/sbin:/bin"
	out, err := n.Command(append([]string{"timeout", "600", "env", path, Program(n.c.t, "kubeadm")}, args...)...).CombinedOutput()
	if err != nil && ctx.Err() == nil {
		err = fmt.Errorf("kubeadm %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), err
}

// UseKubeconfig has the cluster's client speak to the API server that kubeadm made on the node.
func (n *Node) UseKubeconfig() {
	n.c.t.Helper()
	text, err := n.Run("cat", "/etc/kubernetes/admin.conf")
	n.c.check("kubeconfig", err)
	n.c.Kubeconfig = n.c.write("admin.conf", text)
	n.c.makeClient()
}
