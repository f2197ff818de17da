package kube

import (
	"os/exec"
	"strings"
)

// metricsPort is where the metrics server listens on the control plane's machine.
const metricsPort = "4443"

// metricsAPI tells the API server who answers for metrics.k8s.io.
const metricsAPI = `
apiVersion: v1
kind: Service
metadata: {name: metrics-server, namespace: kube-system}
spec: {ports: [{port: 443, targetPort: $PORT, protocol: TCP}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: metrics-server, namespace: kube-system, labels: {kubernetes.io/service-name: metrics-server}}
addressType: IPv4
ports: [{port: $PORT, protocol: TCP}]
endpoints: [{addresses: [$IP], conditions: {ready: true}}]
---
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1beta1.metrics.k8s.io}
spec:
  group: metrics.k8s.io
  version: v1beta1
  groupPriorityMinimum: 100
  versionPriority: 100
  insecureSkipTLSVerify: true
  service: {name: metrics-server, namespace: kube-system}
`

// StartMetrics starts Kubernetes' metrics server, which asks the kubelets and is what `kubectl top` asks.
func (c *Cluster) StartMetrics() {
	c.t.Helper()
	c.Control["metrics-server"] = run(c.t, c.Logs, "metrics-server", func() *exec.Cmd {
		return exec.Command(Program(c.t, "metrics-server"), "--kubeconfig", c.Kubeconfig, "--authentication-kubeconfig", c.Kubeconfig,
			"--authorization-kubeconfig", c.Kubeconfig, "--bind-address", controlIP, "--secure-port", metricsPort, "--cert-dir", c.dir("metrics-server"),
			"--kubelet-certificate-authority", c.pki.path("ca.crt"), "--kubelet-preferred-address-types", "InternalIP", "--metric-resolution", "15s")
	})
	manifest := strings.NewReplacer("$PORT", metricsPort, "$IP", controlIP).Replace(metricsAPI)
	_, err := c.TryKubectl(c.t.Context(), manifest, "apply", "-f", "-")
	c.check("metrics API", err)
}
