// Command v1alpha2 is a client as it was generated before the CRI had a v1: it speaks
// runtime.v1alpha2 with the messages of its time. It asks a runtime, at the socket that its only
// argument names, for its version, pods and images, and prints the answers as JSON.
//
// It is a module of its own so that no other program has to depend on an old CRI.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1alpha2"
)

// Answers is what is printed.
type Answers struct {
	Version *runtime.VersionResponse `json:"version"`
	Pods    []*runtime.PodSandbox    `json:"pods"`
	Images  []*runtime.Image         `json:"images"`
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: v1alpha2 SOCKET")
		os.Exit(2)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := run(ctx, os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "v1alpha2:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, socket string) error {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	pods, images := runtime.NewRuntimeServiceClient(conn), runtime.NewImageServiceClient(conn)

	var a Answers
	if a.Version, err = pods.Version(ctx, &runtime.VersionRequest{}); err != nil {
		return fmt.Errorf("version: %w", err)
	}
	p, err := pods.ListPodSandbox(ctx, &runtime.ListPodSandboxRequest{})
	if err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	i, err := images.ListImages(ctx, &runtime.ListImagesRequest{})
	if err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	a.Pods, a.Images = p.GetItems(), i.GetImages()
	enc := json.NewEncoder(os.Stdout)
	enc.SetIndent("", "  ")
	return enc.Encode(a)
}
