package cri

import (
	"context"
	"slices"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ListImages lists every image, or the one that the filter names.
func (s *Service) ListImages(ctx context.Context, req *runtime.ListImagesRequest) (*runtime.ListImagesResponse, error) {
	list, err := s.listImages(ctx, req.GetFilter())
	if err != nil {
		return nil, err
	}
	return &runtime.ListImagesResponse{Images: list}, nil
}

// StreamImages is ListImages in messages of bounded size.
func (s *Service) StreamImages(req *runtime.StreamImagesRequest, stream runtime.ImageService_StreamImagesServer) error {
	list, err := s.listImages(stream.Context(), req.GetFilter())
	if err != nil {
		return err
	}
	return chunks(list, func(part []*runtime.Image) error {
		return stream.Send(&runtime.StreamImagesResponse{Images: part})
	})
}

func (s *Service) listImages(ctx context.Context, f *runtime.ImageFilter) ([]*runtime.Image, error) {
	if ref := f.GetImage().GetImage(); ref != "" {
		img, err := s.images.Image(ctx, ref)
		if errdefs.IsNotFound(err) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		return []*runtime.Image{fromImage(img)}, nil
	}
	list, err := s.images.ListImages(ctx)
	if err != nil {
		return nil, err
	}
	var out []*runtime.Image
	for _, img := range list {
		out = append(out, fromImage(img))
	}
	return out, nil
}

// ImageStatus answers without an image when there is none: for the CRI that is no error.
func (s *Service) ImageStatus(ctx context.Context, req *runtime.ImageStatusRequest) (*runtime.ImageStatusResponse, error) {
	ref, err := imageName("image", req.GetImage())
	if err != nil {
		return nil, err
	}
	img, err := s.images.Image(ctx, ref)
	if errdefs.IsNotFound(err) {
		return &runtime.ImageStatusResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	res := &runtime.ImageStatusResponse{Image: fromImage(img)}
	if req.GetVerbose() {
		res.Info, err = imageInfo(img)
	}
	return res, err
}

// PullImage pulls an image and answers with its id. The sandbox's UID tells which store is meant.
func (s *Service) PullImage(ctx context.Context, req *runtime.PullImageRequest) (*runtime.PullImageResponse, error) {
	p, err := pull(req)
	if err != nil {
		return nil, err
	}
	if err = s.knownHandler(ctx, req.GetImage().GetRuntimeHandler()); err != nil {
		return nil, err
	}
	id, err := s.images.PullImage(ctx, req.GetSandboxConfig().GetMetadata().GetUid(), p)
	if err != nil {
		return nil, err
	}
	return &runtime.PullImageResponse{ImageRef: id}, nil
}

// knownHandler holds the CRI's rule: "If the runtime handler is unknown, the request should be
// rejected". Images are one namespace over all handlers, so a known one changes nothing.
func (s *Service) knownHandler(ctx context.Context, handler string) error {
	if handler == "" {
		return nil
	}
	st, err := s.node.Status(ctx)
	if err != nil {
		return err
	}
	if !slices.Contains(st.Handlers, handler) {
		return invalid("image.runtime_handler", "%q is not a runtime handler of this node", handler)
	}
	return nil
}

// RemoveImage removes an image with all its names; an absent one is removed.
func (s *Service) RemoveImage(ctx context.Context, req *runtime.RemoveImageRequest) (*runtime.RemoveImageResponse, error) {
	ref, err := imageName("image", req.GetImage())
	if err != nil {
		return nil, err
	}
	return &runtime.RemoveImageResponse{}, gone(s.images.RemoveImage(ctx, ref))
}

// ImageFsInfo tells what images and writable layers occupy.
func (s *Service) ImageFsInfo(ctx context.Context, _ *runtime.ImageFsInfoRequest) (*runtime.ImageFsInfoResponse, error) {
	images, layers, err := s.images.ImageUsage(ctx)
	if err != nil {
		return nil, err
	}
	return &runtime.ImageFsInfoResponse{ImageFilesystems: fromUsages(images), ContainerFilesystems: fromUsages(layers)}, nil
}
