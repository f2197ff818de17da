package cri

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// invalid says why a field of a request can never be right. Field is its path in the protobuf.
func invalid(field, format string, args ...any) error {
	return fmt.Errorf("%s: %s: %w", field, fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument)
}

// unsupported says that a field asks for something gantry cannot express.
func unsupported(field, format string, args ...any) error {
	return fmt.Errorf("%s: %s: %w", field, fmt.Sprintf(format, args...), errdefs.ErrNotImplemented)
}

// gone takes the absence of what is to be stopped or removed for success, as the CRI demands:
// "This call is idempotent, and must not return an error if …  has already been removed".
func gone(err error) error {
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// grpcCodes are the classes an error may have; the first that matches gives the code.
var grpcCodes = []struct {
	class error
	code  codes.Code
}{
	{context.DeadlineExceeded, codes.DeadlineExceeded},
	{context.Canceled, codes.Canceled},
	{errdefs.ErrInvalidArgument, codes.InvalidArgument},
	{errdefs.ErrNotFound, codes.NotFound},
	{errdefs.ErrAlreadyExists, codes.AlreadyExists},
	{errdefs.ErrPermissionDenied, codes.PermissionDenied},
	{errdefs.ErrResourceExhausted, codes.ResourceExhausted},
	{syscall.ENOSPC, codes.ResourceExhausted},
	{syscall.EDQUOT, codes.ResourceExhausted},
	{syscall.EROFS, codes.Unavailable}, // a disk that fails: it may be mended
	{syscall.EIO, codes.Unavailable},
	{errdefs.ErrFailedPrecondition, codes.FailedPrecondition},
	{errdefs.ErrConflict, codes.FailedPrecondition},
	{errdefs.ErrNotModified, codes.FailedPrecondition},
	{errdefs.ErrAborted, codes.Aborted},
	{errdefs.ErrOutOfRange, codes.OutOfRange},
	{errdefs.ErrNotImplemented, codes.Unimplemented},
	{errdefs.ErrUnavailable, codes.Unavailable},
	{errdefs.ErrUnauthenticated, codes.Unauthenticated},
	{errdefs.ErrDataLoss, codes.DataLoss},
	{errdefs.ErrInternal, codes.Internal},
}

// toStatus gives err the gRPC code of its class; an unclassified error is Unknown.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	for _, c := range grpcCodes {
		if errors.Is(err, c.class) {
			return status.Error(c.code, err.Error())
		}
	}
	if s, ok := status.FromError(err); ok {
		return s.Err()
	}
	return status.Error(codes.Unknown, err.Error())
}

func unaryErrors(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	res, err := handler(ctx, req)
	if err != nil {
		return nil, toStatus(err)
	}
	return res, nil
}

func streamErrors(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	return toStatus(handler(srv, ss))
}
