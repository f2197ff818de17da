package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/containerd/errdefs"

	"gantry/internal/image"
	"gantry/internal/pod"
)

// Images is the slice of the image store that administrators reach besides the CRI.
type Images interface {
	Verify(ctx context.Context, v image.Verify, each func(*image.Verified)) error
	ExportAll(ctx context.Context, refs []string, w io.Writer) error
	Import(ctx context.Context, r io.Reader) (ids []string, err error)
	Name(ctx context.Context, ref string, names []string) (*pod.Image, error)
	Untag(ctx context.Context, tag string) error
}

// Named is an image with its names.
type Named struct {
	ID      string          `json:"id"`
	Tags    []string        `json:"tags"`
	Digests []string        `json:"digests"`
	Config  json.RawMessage `json:"config,omitempty"` // as it was pulled
}

// Layers are the digests of the image's layers, unpacked, the lowest first.
func (n *Named) Layers() []string {
	var config struct {
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if json.Unmarshal(n.Config, &config) != nil {
		return nil // an artifact's says nothing
	}
	return config.RootFS.DiffIDs
}

// verified is a line of the answer to a verification: an image, or at last why it ended early.
type verified struct {
	Image *image.Verified `json:"image,omitempty"`
	Error string          `json:"error,omitempty"`
}

// handleImages answers for images:
//
//	POST /images/verify?image=REF&repair=true  lines of JSON, an image each, as they are done
//	GET  /images/export?image=REF              a tar; an error after its first byte is a trailer, and the tar has no end
//	POST /images/import                        takes a tar, answers a JSON list of ids
//	POST /images/name?image=REF&name=NAME      gives names, answers the image in JSON
//	POST /images/untag?image=TAG
func handleImages(mux *http.ServeMux, images Images) {
	mux.HandleFunc("POST /images/verify", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		w.Header().Set("Content-Type", "application/jsonlines")
		out := json.NewEncoder(w)
		err := images.Verify(r.Context(), image.Verify{Images: q["image"], Repair: q.Get("repair") == "true"}, func(v *image.Verified) {
			_ = out.Encode(verified{Image: v}) // the client left
			_ = http.NewResponseController(w).Flush()
		})
		if err != nil {
			_ = out.Encode(verified{Error: err.Error()})
		}
	})
	mux.HandleFunc("GET /images/export", func(w http.ResponseWriter, r *http.Request) {
		out := &late{w: w}
		err := images.ExportAll(r.Context(), r.URL.Query()["image"], out)
		switch {
		case err == nil:
		case out.begun:
			w.Header().Set(brokenOff, err.Error())
		default:
			refuse(w, err)
		}
	})
	mux.HandleFunc("POST /images/import", func(w http.ResponseWriter, r *http.Request) {
		ids, err := images.Import(r.Context(), r.Body)
		if err != nil {
			refuse(w, err)
			return
		}
		answer(w, ids)
	})
	mux.HandleFunc("POST /images/name", func(w http.ResponseWriter, r *http.Request) {
		img, err := images.Name(r.Context(), r.URL.Query().Get("image"), r.URL.Query()["name"])
		if err != nil {
			refuse(w, err)
			return
		}
		answer(w, Named{ID: img.ID, Tags: img.Tags, Digests: img.Digests, Config: img.Config.Raw})
	})
	mux.HandleFunc("POST /images/untag", func(w http.ResponseWriter, r *http.Request) {
		if err := images.Untag(r.Context(), r.URL.Query().Get("image")); err != nil {
			refuse(w, err)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
}

// brokenOff is the trailer that says why a tar ends early.
const brokenOff = "Gantry-Broken-Off"

// late remembers whether anything was written.
type late struct {
	w     http.ResponseWriter
	begun bool
}

func (l *late) Write(p []byte) (int, error) {
	if !l.begun {
		l.w.Header().Set("Content-Type", "application/x-tar")
		l.w.Header().Set("Trailer", brokenOff)
		l.begun = true
	}
	return l.w.Write(p)
}

func refuse(w http.ResponseWriter, err error) {
	code := http.StatusInternalServerError
	switch {
	case errdefs.IsNotFound(err):
		code = http.StatusNotFound
	case errdefs.IsInvalidArgument(err):
		code = http.StatusBadRequest
	case errdefs.IsFailedPrecondition(err):
		code = http.StatusPreconditionFailed
	case errdefs.IsNotImplemented(err):
		code = http.StatusNotImplemented
	}
	http.Error(w, err.Error(), code)
}

// VerifyImages verifies images, all if none is named, and tells each as it is done.
func (c *Client) VerifyImages(ctx context.Context, v image.Verify, each func(*image.Verified)) error {
	q := url.Values{"image": v.Images}
	if v.Repair {
		q.Set("repair", "true")
	}
	body, err := c.do(ctx, http.MethodPost, "/images/verify?"+q.Encode(), nil)
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	in := json.NewDecoder(body)
	for {
		var line verified
		err := in.Decode(&line)
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return fmt.Errorf("the server stopped answering: %w", err)
		case line.Error != "":
			return errors.New(line.Error)
		case line.Image != nil:
			each(line.Image)
		}
	}
}

// ExportImages writes a tar of images to w. After an error what was written is of no use.
func (c *Client) ExportImages(ctx context.Context, refs []string, w io.Writer) error {
	resp, err := c.ask(ctx, http.MethodGet, "/images/export?"+url.Values{"image": refs}.Encode(), nil)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if _, err := io.Copy(w, resp.Body); err != nil {
		return fmt.Errorf("the server stopped answering: %w", err)
	}
	if reason := resp.Trailer.Get(brokenOff); reason != "" {
		return errors.New(reason)
	}
	return nil
}

// ImportImages takes the images of a tar and returns their ids.
func (c *Client) ImportImages(ctx context.Context, r io.Reader) (ids []string, err error) {
	body, err := c.do(ctx, http.MethodPost, "/images/import", r)
	if err != nil {
		return nil, err
	}
	defer func() { _ = body.Close() }()
	return ids, json.NewDecoder(body).Decode(&ids)
}

// NameImage gives names to an image and returns it; without names it only looks.
func (c *Client) NameImage(ctx context.Context, ref string, names []string) (*Named, error) {
	body, err := c.do(ctx, http.MethodPost, "/images/name?"+url.Values{"image": {ref}, "name": names}.Encode(), nil)
	if err != nil {
		return nil, err
	}
	defer func() { _ = body.Close() }()
	var n Named
	if err := json.NewDecoder(body).Decode(&n); err != nil {
		return nil, fmt.Errorf("name image %s: %w", ref, err)
	}
	return &n, nil
}

// UntagImage takes one name from an image.
func (c *Client) UntagImage(ctx context.Context, tag string) error {
	body, err := c.do(ctx, http.MethodPost, "/images/untag?"+url.Values{"image": {tag}}.Encode(), nil)
	if err != nil {
		return err
	}
	return body.Close()
}

// do is ask for those who want the body alone.
func (c *Client) do(ctx context.Context, method, path string, body io.Reader) (io.ReadCloser, error) {
	resp, err := c.ask(ctx, method, path, body)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// ask sends a request and returns a good answer; a bad one's body is the error.
func (c *Client) ask(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://admin"+path, body)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode < 300 {
		return resp, nil
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusNotFound {
		return nil, notFound(strings.TrimSpace(string(text)))
	}
	return nil, errors.New(strings.TrimSpace(string(text)))
}

// notFound is a server's word that there is no such thing.
type notFound string

func (e notFound) Error() string        { return string(e) }
func (e notFound) Is(target error) bool { return target == errdefs.ErrNotFound }
