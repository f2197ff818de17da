package remote_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"gantry/internal/image/remote"
	"gantry/internal/labimage"
	"gantry/internal/pod"
)

// session opens a session with an image of one layer and returns the layer's descriptor.
func session(t *testing.T, r *labimage.Server, auth *pod.Auth) (*remote.Session, ocispec.Descriptor) {
	t.Helper()
	img, err := labimage.Build(v1.Config{}, []labimage.Entry{labimage.File("f", 0o644, strings.Repeat("content ", 40_000))})
	if err != nil {
		t.Fatal(err)
	}
	ref, err := r.Push("app:1", img)
	if err != nil {
		t.Fatal(err)
	}
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		t.Fatal(err)
	}
	s, err := remote.New(remote.Options{Backoff: time.Millisecond}).Open(named, auth)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	l := m.Layers[0]
	return s, ocispec.Descriptor{MediaType: string(l.MediaType), Digest: digest.Digest(l.Digest.String()), Size: l.Size}
}

func TestBlobIsResumedWhereItBroke(t *testing.T) {
	r := labimage.Registry(t, labimage.Config{})
	s, desc := session(t, r, nil)
	var mu sync.Mutex
	var asked []string
	half := labimage.Times(1, labimage.Reset())
	r.SetFault(labimage.On("GET", "/blobs/", func(w http.ResponseWriter, req *http.Request, next http.Handler) bool {
		mu.Lock()
		asked = append(asked, req.Header.Get("Range"))
		mu.Unlock()
		return half(w, req, next)
	}))
	var last int64
	b := s.Blob(t.Context(), desc, func(done int64) { last = done })
	data, err := io.ReadAll(b)
	if err != nil || digest.FromBytes(data) != desc.Digest || last != desc.Size {
		t.Errorf("%d bytes of %d, progress %d, %v", len(data), desc.Size, last, err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(asked) != 2 || asked[0] != "" || asked[1] == "" || asked[1] == "bytes=0-" {
		t.Errorf("asked for the ranges %q", asked)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

func TestReadRefusesWhatIsTooLarge(t *testing.T) {
	r := labimage.Registry(t, labimage.Config{})
	s, desc := session(t, r, nil)
	if _, err := s.Read(t.Context(), desc, desc.Size-1); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("error %v", err)
	}
	if n := r.Requests(http.MethodGet, "/blobs/"); n != 0 {
		t.Errorf("%d requests were sent for it", n)
	}
	if data, err := s.Read(t.Context(), desc, desc.Size); err != nil || int64(len(data)) != desc.Size {
		t.Errorf("%d bytes, %v", len(data), err)
	}
}

func TestBlobAfterClose(t *testing.T) {
	r := labimage.Registry(t, labimage.Config{})
	s, desc := session(t, r, nil)
	b := s.Blob(t.Context(), desc, nil)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Read(make([]byte, 1)); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("error %v", err)
	}
}

func TestCredentialsAreNotShownToWhereABlobIsRedirected(t *testing.T) {
	for name, auth := range map[string]*pod.Auth{
		"basic": {Username: "anna", Password: "s3cret"},
		"token": {RegistryToken: "t0ken"},
	} {
		demands := &labimage.Auth{User: "anna", Password: "s3cret"}
		if name == "token" {
			demands = &labimage.Auth{Token: "t0ken"}
		}
		r := labimage.Registry(t, labimage.Config{Auth: demands})
		s, desc := session(t, r, auth)
		var mu sync.Mutex
		var seen []string
		other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			seen = append(seen, req.Header.Get("Authorization"))
			w.Header().Set("WWW-Authenticate", `Basic realm="curious"`)
			http.Error(w, "who are you?", http.StatusUnauthorized)
		}))
		t.Cleanup(other.Close)
		r.SetFault(labimage.On("GET", "/blobs/", func(w http.ResponseWriter, req *http.Request, _ http.Handler) bool {
			// another name for the loopback, so that it is another host
			http.Redirect(w, req, strings.Replace(other.URL, "127.0.0.1", "localhost", 1), http.StatusTemporaryRedirect)
			return true
		}))
		if _, err := s.Read(t.Context(), desc, desc.Size); err == nil {
			t.Errorf("%s: the redirect was followed to an answer", name)
		}
		mu.Lock()
		if len(seen) == 0 || strings.Join(seen, "") != "" {
			t.Errorf("%s: the other host saw %q", name, seen)
		}
		mu.Unlock()
	}
}

func FuzzHostsTOML(f *testing.F) {
	for _, seed := range []string{
		"", "server = \"https://a.example\"", "[host.\"http://b.example:5000/v2/x\"]\ncapabilities = [\"pull\"]\noverride_path = true\n",
		"ca = [\"/nowhere\"]\nskip_verify = 1", "[host]\n[host.\"\"]\nheader = 1", "server = [", "client = [[\"a\"]]",
	} {
		f.Add([]byte(seed))
	}
	named, err := reference.ParseNormalizedNamed("fuzz.example/app:1")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "fuzz.example"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "fuzz.example", "hosts.toml"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := remote.New(remote.Options{CertsDir: dir, Attempts: 1}).Open(named, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // the file is read, nothing is sent
		if _, err := s.Resolve(ctx); err == nil {
			t.Error("resolved without a registry")
		}
	})
}
