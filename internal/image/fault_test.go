package image_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"gantry/internal/image"
	"gantry/internal/image/unpack"
	"gantry/internal/labimage"
	"gantry/internal/pod"
)

// noise is content that does not compress.
func noise(n int) string {
	src := rand.NewChaCha8([32]byte{1})
	b := make([]byte, n)
	_, _ = src.Read(b)
	return string(b)
}

func bigImage(t *testing.T) v1.Image {
	t.Helper()
	return build(t, v1.Config{},
		[]labimage.Entry{labimage.File("one", 0o644, noise(300_000))},
		[]labimage.Entry{labimage.File("two", 0o644, noise(200_000))})
}

func TestBrokenRegistryIsAClearErrorAndNothingIsLeft(t *testing.T) {
	for name, c := range map[string]struct {
		fault labimage.Fault
		class func(error) bool
		says  string
	}{
		"stalls in a layer":          {inLayers(labimage.Stall()), errdefs.IsUnavailable, "sent no byte"},
		"stalls in the manifest":     {labimage.On("GET", "/manifests/", labimage.Stall()), errdefs.IsUnavailable, "sent no byte"},
		"breaks every connection":    {inLayers(abort()), errdefs.IsUnavailable, "fetch sha256:"},
		"too many requests":          {labimage.Status(http.StatusTooManyRequests), errdefs.IsUnavailable, "429"},
		"is out of order":            {labimage.Status(http.StatusInternalServerError), errdefs.IsUnavailable, "500"},
		"is down behind a proxy":     {labimage.Status(http.StatusBadGateway), errdefs.IsUnavailable, "502"},
		"layers are out of order":    {inLayers(labimage.Status(http.StatusServiceUnavailable)), errdefs.IsUnavailable, "503"},
		"forbids":                    {labimage.Status(http.StatusForbidden), errdefs.IsPermissionDenied, "403"},
		"wants credentials":          {labimage.Status(http.StatusUnauthorized), errdefs.IsUnauthorized, "401"},
		"lost a blob":                {inLayers(labimage.Status(http.StatusNotFound)), errdefs.IsNotFound, "not found"},
		"serves web pages":           {labimage.HTML(), errdefs.IsFailedPrecondition, "text/html"},
		"serves wrong blobs":         {inLayers(labimage.Corrupt()), errdefs.IsDataLoss, "has digest sha256:"},
		"serves a wrong config":      {labimage.On("GET", "/blobs/", labimage.Corrupt()), errdefs.IsDataLoss, "has digest sha256:"},
		"serves a wrong manifest":    {labimage.On("GET", "/manifests/", labimage.Corrupt()), errdefs.IsDataLoss, "has digest sha256:"},
		"serves more than it said":   {inLayers(longer()), errdefs.IsDataLoss, "size"},
		"serves less than it said":   {inLayers(shorter()), errdefs.IsUnavailable, "unexpected EOF"},
		"serves blobs as a web page": {inLayers(labimage.HTML()), func(err error) bool { return err != nil }, "sha256:"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := labimage.Registry(t, labimage.Config{})
			ref := push(t, r, "app:1", bigImage(t))
			root := t.TempDir()
			o := image.Options{Root: root}
			if strings.HasPrefix(name, "stalls") { // the others must not seem to where the machine is slow
				o.Stall = time.Second
			}
			s := open(t, o)
			r.SetFault(c.fault)
			_, err := s.Pull(t.Context(), &pod.Pull{Ref: ref})
			if !c.class(err) || !strings.Contains(fmt.Sprint(err), c.says) {
				t.Errorf("error %v", err)
			}
			wantNothingLeft(t, root)
			r.SetFault(nil)
			must(t, s.Close())
			pull(t, open(t, image.Options{Root: root}), ref)
		})
	}
}

// inLayers lets the config through, which is the first blob that a pull fetches.
func inLayers(f labimage.Fault) labimage.Fault {
	return labimage.On("GET", "/blobs/", labimage.After(1, f))
}

// abort breaks the connection before anything is sent.
func abort() labimage.Fault {
	return func(http.ResponseWriter, *http.Request, http.Handler) bool { panic(http.ErrAbortHandler) }
}

// longer appends bytes to what a blob should be; shorter leaves out its end without a broken connection.
func longer() labimage.Fault {
	return labimage.Edit(func(b []byte) []byte { return append(slices.Clone(b), "more"...) })
}

func shorter() labimage.Fault {
	return labimage.Edit(func(b []byte) []byte { return b[:len(b)/2] })
}

func TestPassingFaultsAreMended(t *testing.T) {
	for name, fault := range map[string]labimage.Fault{
		"a connection that breaks in a layer is resumed": inLayers(labimage.Times(2, labimage.Reset())),
		"a registry without ranges is read again":        labimage.Either(labimage.NoRanges(), inLayers(labimage.Times(2, labimage.Reset()))),
		"a refused request is tried again":               labimage.Times(1, labimage.Status(http.StatusServiceUnavailable)),
		"too many requests are tried again later":        labimage.Times(3, labimage.Status(http.StatusTooManyRequests)),
	} {
		t.Run(name, func(t *testing.T) {
			r := labimage.Registry(t, labimage.Config{})
			ref := push(t, r, "app:1", bigImage(t))
			r.SetFault(fault)
			s := open(t, image.Options{})
			root := prepare(t, s, "c", pull(t, s, ref))
			if read(t, root, "one") != noise(300_000) {
				t.Error("the content is not the image's")
			}
		})
	}
}

func TestAbsentAndUnreachable(t *testing.T) {
	r := labimage.Registry(t, labimage.Config{})
	push(t, r, "app:1", bigImage(t))
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	root := t.TempDir()
	s := open(t, image.Options{Root: root})
	for name, c := range map[string]struct {
		ref  string
		want func(error) bool
	}{
		"absent tag":          {r.Host + "/app:2", errdefs.IsNotFound},
		"absent repository":   {r.Host + "/other:1", errdefs.IsNotFound},
		"absent digest":       {r.Host + "/app@sha256:" + strings.Repeat("ab", 32), errdefs.IsNotFound},
		"nobody listens":      {l.Addr().String() + "/app:1", errdefs.IsUnavailable},
		"malformed reference": {"a/UPPER", errdefs.IsInvalidArgument},
	} {
		if _, err := s.Pull(t.Context(), &pod.Pull{Ref: c.ref}); !c.want(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	wantNothingLeft(t, root)
}

func TestCancelledPullLeavesNothing(t *testing.T) {
	r := labimage.Registry(t, labimage.Config{})
	ref := push(t, r, "app:1", bigImage(t))
	r.SetFault(inLayers(labimage.Stall()))
	root := t.TempDir()
	s := open(t, image.Options{Root: root})
	ctx, cancel := context.WithCancel(t.Context())
	_, err := s.Pull(ctx, &pod.Pull{Ref: ref, Progress: func(p pod.LayerProgress) {
		if p.Done > 0 {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	wantNothingLeft(t, root)
}

func TestCloseEndsPullsAndLeavesNothing(t *testing.T) {
	r := labimage.Registry(t, labimage.Config{})
	ref := push(t, r, "app:1", bigImage(t))
	r.SetFault(inLayers(labimage.Stall()))
	root := t.TempDir()
	s := open(t, image.Options{Root: root})
	begun, ended := make(chan struct{}), make(chan error, 1)
	var once sync.Once
	go func() {
		_, err := s.Pull(t.Context(), &pod.Pull{Ref: ref, Progress: func(pod.LayerProgress) { once.Do(func() { close(begun) }) }})
		ended <- err
	}()
	<-begun
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errdefs.IsUnavailable(err) {
		t.Errorf("the pull says %v", err)
	}
	wantNothingLeft(t, root)
	if _, err := s.Pull(t.Context(), &pod.Pull{Ref: ref}); !errdefs.IsUnavailable(err) {
		t.Errorf("a pull after Close says %v", err)
	}
}

func TestPullsAtTheSameTimeJoin(t *testing.T) {
	r := labimage.Registry(t, labimage.Config{})
	shared := []labimage.Entry{labimage.File("shared", 0o644, noise(400_000))}
	a := push(t, r, "a:1", build(t, v1.Config{}, shared, []labimage.Entry{labimage.File("a", 0o644, "a")}))
	b := push(t, r, "b:1", build(t, v1.Config{}, shared, []labimage.Entry{labimage.File("b", 0o644, "b")}))
	s := open(t, image.Options{})
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			if _, err := s.Pull(t.Context(), &pod.Pull{Ref: []string{a, b}[i%2]}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	// three layers and two configs, each once
	if n := r.Requests(http.MethodGet, "/blobs/"); n != 5 {
		t.Errorf("%d blobs were fetched, want 5", n)
	}
}

func TestFullDiskIsAClearErrorAndNothingIsLeft(t *testing.T) {
	r := labimage.Registry(t, labimage.Config{})
	ref := push(t, r, "app:1", build(t, v1.Config{}, []labimage.Entry{labimage.File("big", 0o644, noise(6<<20))}))
	root := t.TempDir()
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "size=2m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(root, unix.MNT_DETACH) })
	s := open(t, image.Options{Root: root})
	if _, err := s.Pull(t.Context(), &pod.Pull{Ref: ref}); !errdefs.IsResourceExhausted(err) {
		t.Errorf("error %v", err)
	}
	wantNothingLeft(t, root)
	_ = s.Close()
}

func TestLimitsOfALayer(t *testing.T) {
	r := labimage.Registry(t, labimage.Config{})
	var many []labimage.Entry
	for i := range 200 {
		many = append(many, labimage.File(fmt.Sprint(i), 0o644, ""))
	}
	for name, c := range map[string]struct {
		limits unpack.Limits
		layer  []labimage.Entry
	}{
		"bytes":   {unpack.Limits{Bytes: 1 << 20}, []labimage.Entry{labimage.File("zeros", 0o644, strings.Repeat("\x00", 2<<20))}},
		"entries": {unpack.Limits{Entries: 100}, many},
	} {
		root := t.TempDir()
		s := open(t, image.Options{Root: root, Limits: c.limits})
		ref := push(t, r, name+":1", build(t, v1.Config{}, c.layer))
		if _, err := s.Pull(t.Context(), &pod.Pull{Ref: ref}); !errdefs.IsResourceExhausted(err) {
			t.Errorf("%s: %v", name, err)
		}
		wantNothingLeft(t, root)
	}
}

func TestLayerThatIsNotWhatTheConfigSays(t *testing.T) {
	r := labimage.Registry(t, labimage.Config{})
	img := bigImage(t)
	ref := push(t, r, "app:1", labimage.WithDiffID(img, 0, "sha256:"+strings.Repeat("cd", 32)))
	root := t.TempDir()
	s := open(t, image.Options{Root: root})
	_, err := s.Pull(t.Context(), &pod.Pull{Ref: ref})
	if !errdefs.IsDataLoss(err) || !strings.Contains(err.Error(), strings.Repeat("cd", 32)) {
		t.Errorf("error %v", err)
	}
	wantNothingLeft(t, root)
}

func TestOpenRemovesWhatACrashLeft(t *testing.T) {
	r := labimage.Registry(t, labimage.Config{})
	whole := push(t, r, "whole:1", bigImage(t))
	torn := push(t, r, "torn:1", build(t, v1.Config{}, []labimage.Entry{labimage.File("t", 0o644, "t")}))
	root := t.TempDir()
	s := open(t, image.Options{Root: root})
	pull(t, s, whole)
	before := left(t, root)
	pull(t, s, torn)
	_ = s.Close()
	for _, entry := range left(t, root) {
		if strings.HasPrefix(entry, "layers/") && !slices.Contains(before, entry) {
			if err := os.RemoveAll(filepath.Join(root, entry)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, d := range []string{"layers/0123456789abcdef/etc", "staging/layer-1/etc", "staging/gone-2/x"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"images/.tmp-1.json-2", "images/" + strings.Repeat("0", 64) + ".json"} {
		if err := os.WriteFile(filepath.Join(root, f), []byte(`{"id":`), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s = open(t, image.Options{Root: root})
	if got := left(t, root); !slices.Equal(got, before) {
		t.Errorf("after the restart there is %v, want %v", got, before)
	}
	if _, err := s.Get(t.Context(), torn); !errdefs.IsNotFound(err) {
		t.Errorf("an image without its layer is listed: %v", err)
	}
	if _, err := s.Get(t.Context(), whole); err != nil {
		t.Error(err)
	}
}

func TestOneStoreARoot(t *testing.T) {
	root := t.TempDir()
	open(t, image.Options{Root: root})
	if s, err := image.Open(image.Options{Root: root}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a second store opened: %v, %v", s, err)
	}
}

func TestBandwidthIsLimitedForAllPullsTogether(t *testing.T) {
	r := labimage.Registry(t, labimage.Config{})
	data := make([]byte, 500_000)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(data) // does not compress
	ref := push(t, r, "random:1", build(t, v1.Config{}, []labimage.Entry{labimage.File("r", 0o644, string(data))}))
	s := open(t, image.Options{Bandwidth: 1_000_000})
	began := time.Now()
	pull(t, s, ref)
	if took := time.Since(began); took < 400*time.Millisecond {
		t.Errorf("0.5 MB at 1 MB/s took %s", took)
	}
}
