package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	protocodec "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/internal/bench"
	"gantry/internal/netns"
)

// answers is a runtime that has nothing to do: it knows every answer.
type answers struct {
	cri.UnimplementedRuntimeServiceServer
	list   *cri.ListContainersResponse
	status *cri.ContainerStatusResponse
}

func (a *answers) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	return &cri.VersionResponse{Version: "0.1.0", RuntimeName: "answers", RuntimeVersion: "1", RuntimeApiVersion: "v1"}, nil
}

func (a *answers) ListContainers(context.Context, *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	return a.list, nil
}

func (a *answers) ContainerStatus(context.Context, *cri.ContainerStatusRequest) (*cri.ContainerStatusResponse, error) {
	return a.status, nil
}

// once is gRPC's codec for protobuf, except that what the answers know is encoded once.
type once struct {
	encoding.CodecV2
	known map[any]mem.BufferSlice
}

func (o once) Marshal(v any) (mem.BufferSlice, error) {
	if data, ok := o.known[v]; ok {
		return data, nil
	}
	return o.CodecV2.Marshal(v)
}

// answered is how many containers the answers know: as many as the goals speak of.
const answered = 100

// answer serves answers at a unix socket until ctx ends.
func answer(ctx context.Context, socket string) error {
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", socket)
	if err != nil {
		return err
	}
	a := &answers{list: new(cri.ListContainersResponse)}
	meta, image := &cri.ContainerMetadata{Name: "main"}, &cri.ImageSpec{Image: registryAddress + "/bench/busybox:1"}
	for i := range answered {
		id := fmt.Sprintf("%064x", i)
		uid := fmt.Sprintf("00000000-0000-4000-8000-%012x", i)
		a.list.Containers = append(a.list.Containers, &cri.Container{
			Id: id, PodSandboxId: id, Metadata: meta, Image: image, ImageRef: "sha256:" + id, State: cri.ContainerState_CONTAINER_RUNNING,
			CreatedAt: time.Now().UnixNano(), ImageId: "sha256:" + id, Labels: map[string]string{"io.kubernetes.pod.uid": uid},
		})
	}
	one := a.list.Containers[0]
	a.status = &cri.ContainerStatusResponse{Status: &cri.ContainerStatus{
		Id: one.Id, Metadata: meta, State: one.State, CreatedAt: one.CreatedAt, StartedAt: one.CreatedAt, Image: image, ImageRef: one.ImageRef,
		LogPath: "/var/log/pods/bench/main_0.log", Labels: one.Labels,
	}}
	codec := once{encoding.GetCodecV2(protocodec.Name), make(map[any]mem.BufferSlice)}
	for _, m := range []proto.Message{a.list, a.status} {
		data, failed := proto.Marshal(m)
		if failed != nil {
			return failed
		}
		codec.known[m] = mem.BufferSlice{mem.SliceBuffer(data)}
	}
	s := grpc.NewServer(grpc.ForceServerCodecV2(codec))
	cri.RegisterRuntimeServiceServer(s, a)
	go func() {
		<-ctx.Done()
		s.Stop()
	}()
	return s.Serve(l)
}

// callFloors asks a server that knows every answer, in a process of its own.
func callFloors(ctx context.Context, dir string, times int, to bench.Scope) (err error) {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	socket := filepath.Join(dir, "answers.sock")
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	server := exec.CommandContext(ctx, self, "-answers", socket)
	server.Stderr = os.Stderr
	if err = server.Start(); err != nil {
		return err
	}
	defer func() {
		_ = server.Process.Kill()
		_ = server.Wait()
	}()
	t, err := bench.Dial(ctx, "answers", socket)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	for _, call := range []struct {
		name string
		do   func() error
	}{
		{bench.LimitVersion, func() error { _, failed := t.Runtime.Version(ctx, &cri.VersionRequest{}); return failed }},
		{bench.LimitList, func() error { _, failed := t.Runtime.ListContainers(ctx, &cri.ListContainersRequest{}); return failed }},
		{bench.LimitStatus, func() error {
			_, failed := t.Runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: "0"})
			return failed
		}},
	} {
		for i := range 6 * times {
			began := time.Now()
			if err = call.do(); err != nil {
				return err
			}
			if i >= times { // as bench.Crowd does it
				to.Took(call.name, time.Since(began))
			}
		}
	}
	kib, err := bench.Proportional(server.Process.Pid)
	to.Add(bench.LimitServer, "MiB PSS", float64(kib)/1024)
	return errors.Join(err, processFloor(ctx, to), statFloor(times, to))
}

// processFloor is what the smallest helpers would need, were there one a pod.
func processFloor(ctx context.Context, to bench.Scope) error {
	var total int64
	helpers := make([]*exec.Cmd, answered)
	defer func() {
		for _, p := range helpers {
			if p != nil {
				_ = p.Process.Kill()
				_ = p.Wait()
			}
		}
	}()
	for i := range helpers {
		p := exec.CommandContext(ctx, "/bin/busybox", "sleep", "1000")
		if err := p.Start(); err != nil {
			return err
		}
		helpers[i] = p
	}
	for _, p := range helpers {
		kib, err := bench.Proportional(p.Process.Pid)
		if err != nil {
			return err
		}
		total += kib
	}
	to.Add(bench.LimitHelper, "KiB PSS", float64(total)/float64(len(helpers)))
	return nil
}

// statFloor reads what the kernel counts of a container as often as a list of a hundred pods' statistics
// needs it: for each pod and its container.
func statFloor(times int, to bench.Scope) (err error) {
	group := fmt.Sprintf("gantry-bench-floor-%d", os.Getpid())
	var files []*os.File
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
		err = errors.Join(err, endGroup(group))
	}()
	for dir, names := range map[string][]string{
		"": {"cpu.stat", "memory.current", "memory.stat", "pids.current"}, "cpuacct": {"cpuacct.usage"},
		"memory": {"memory.usage_in_bytes", "memory.stat"}, "pids": {"pids.current"},
	} {
		top := filepath.Join("/sys/fs/cgroup", dir)
		if _, missing := os.Stat(filepath.Join(top, "cgroup.procs")); missing != nil {
			continue
		}
		if err = os.MkdirAll(filepath.Join(top, group), 0o755); err != nil {
			return err
		}
		for _, name := range names {
			if f, missing := os.Open(filepath.Join(top, group, name)); missing == nil {
				files = append(files, f)
			}
		}
	}
	text := make([]byte, 8<<10)
	for range times {
		began := time.Now()
		for range 2 * answered {
			for _, f := range files {
				if _, err = f.ReadAt(text, 0); err != nil && !errors.Is(err, io.EOF) {
					return err
				}
			}
		}
		to.Took(bench.LimitStats, time.Since(began))
	}
	return nil
}

// cni is what runtimes call for a pod's network.
type cni struct {
	plugins *libcni.CNIConfig
	list    *libcni.NetworkConfigList
	pin     string
}

func newCNI(dir string) (*cni, error) {
	if _, err := os.Stat(filepath.Join(plugins, "bridge")); err != nil {
		return nil, err
	}
	list, err := libcni.ConfListFromBytes([]byte(strings.ReplaceAll(bridgeConf, "LEASES", filepath.Join(dir, "leases"))))
	if err != nil {
		return nil, err
	}
	return &cni{libcni.NewCNIConfigWithCacheDir([]string{plugins}, filepath.Join(dir, "cni"), nil), list, filepath.Join(dir, "cninetns")}, nil
}

// floor connects a namespace and takes it from the network again.
func (c *cni) floor(ctx context.Context, to bench.Scope) error {
	if c == nil {
		return nil
	}
	if err := netns.Create(netns.Spec{Net: c.pin}); err != nil {
		return err
	}
	rt := &libcni.RuntimeConf{ContainerID: "bench-floor", NetNS: c.pin, IfName: "eth0"}
	began, before := time.Now(), childrenCPU()
	_, err := c.plugins.AddNetworkList(ctx, c.list, rt)
	to.Took(bench.LimitADD, time.Since(began))
	if err == nil {
		began = time.Now()
		err = c.plugins.DelNetworkList(ctx, c.list, rt)
		to.Took("CNI plugins bridge, host-local and portmap: DEL", time.Since(began))
		to.Took(bench.LimitCNICPU, childrenCPU()-before)
	}
	return errors.Join(err, netns.Unpin(c.pin))
}
