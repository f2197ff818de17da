package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
)

var errTooLarge = fmt.Errorf("refused: %w", errdefs.ErrFailedPrecondition)

// configError is a mistake in hosts.toml or in the files that it names.
type configError struct{ error }

func (e configError) Unwrap() []error { return []error{e.error, errdefs.ErrInvalidArgument} }

// classify wraps an error of the registry library with the class that callers act upon.
func classify(err error) error {
	var status remoteerrors.ErrUnexpectedStatus
	var netErr net.Error
	var urlErr *url.Error
	switch {
	case errors.As(err, new(configError)), errors.Is(err, errdefs.ErrDataLoss):
		return err
	case errors.As(err, &status):
		return fmt.Errorf("%w: %w", err, statusClass(status.StatusCode))
	case errors.Is(err, docker.ErrInvalidAuthorization):
		return fmt.Errorf("%w: %w", err, errdefs.ErrUnauthenticated)
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.As(err, &urlErr), errors.As(err, &netErr), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
	}
	return err
}

func statusClass(code int) error {
	switch {
	case code == http.StatusUnauthorized:
		return errdefs.ErrUnauthenticated
	case code == http.StatusForbidden:
		return errdefs.ErrPermissionDenied
	case code == http.StatusNotFound:
		return errdefs.ErrNotFound
	case code == http.StatusTooManyRequests, code == http.StatusRequestTimeout, code >= 500:
		return errdefs.ErrUnavailable
	}
	return errdefs.ErrFailedPrecondition
}

// temporary says whether another attempt may succeed.
func temporary(err error) bool {
	return errdefs.IsUnavailable(err) && !errors.Is(err, errStalled) && asked(err) <= patience
}

// rangeRefused says that a registry does not send parts of a blob.
func rangeRefused(err error) bool {
	var status remoteerrors.ErrUnexpectedStatus
	return errors.As(err, &status) && status.StatusCode == http.StatusRequestedRangeNotSatisfiable
}

// wrongSize says that a blob is shorter or longer than its descriptor has it: the rest of it was asked
// for and there is none, or the registry library was sent more.
func wrongSize(err error) bool {
	var status remoteerrors.ErrUnexpectedStatus
	return rangeRefused(err) || errdefs.IsFailedPrecondition(err) && !errors.As(err, &status)
}
