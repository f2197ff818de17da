package image_test

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"gantry/internal/image"
	"gantry/internal/labimage"
	"gantry/internal/pod"
)

func TestCredentials(t *testing.T) {
	basic := &labimage.Auth{User: "anna", Password: "s3cret"}
	token := &labimage.Auth{User: "anna", Password: "s3cret", Refresh: "refresh-me", Token: "t0ken"}
	for name, c := range map[string]struct {
		demands *labimage.Auth
		offers  *pod.Auth
		want    func(error) bool
	}{
		"user and password":              {basic, &pod.Auth{Username: "anna", Password: "s3cret"}, isNil},
		"auth":                           {basic, &pod.Auth{Auth: base64.StdEncoding.EncodeToString([]byte("anna:s3cret"))}, isNil},
		"user and password for a token":  {token, &pod.Auth{Username: "anna", Password: "s3cret"}, isNil},
		"identity token":                 {token, &pod.Auth{IdentityToken: "refresh-me"}, isNil},
		"registry token":                 {token, &pod.Auth{RegistryToken: "t0ken"}, isNil},
		"none":                           {basic, nil, errdefs.IsUnauthorized},
		"none for a token":               {token, nil, errdefs.IsUnauthorized},
		"wrong password":                 {basic, &pod.Auth{Username: "anna", Password: "guess"}, errdefs.IsUnauthorized},
		"wrong password for a token":     {token, &pod.Auth{Username: "anna", Password: "guess"}, errdefs.IsUnauthorized},
		"wrong registry token":           {token, &pod.Auth{RegistryToken: "guess"}, errdefs.IsUnauthorized},
		"malformed auth":                 {basic, &pod.Auth{Auth: "%%%"}, errdefs.IsInvalidArgument},
		"credentials of another server":  {basic, &pod.Auth{Username: "anna", Password: "s3cret", ServerAddress: "https://other.example"}, errdefs.IsUnauthorized},
		"credentials with a bare server": {basic, &pod.Auth{Username: "anna", Password: "s3cret", ServerAddress: "HOST"}, isNil},
		"credentials with a server URL":  {basic, &pod.Auth{Username: "anna", Password: "s3cret", ServerAddress: "http://HOST/v2/"}, isNil},
	} {
		t.Run(name, func(t *testing.T) {
			r := labimage.Registry(t, labimage.Config{Auth: c.demands})
			ref := push(t, r, "app:1", build(t, v1.Config{}, []labimage.Entry{labimage.File("a", 0o644, "a")}))
			root := t.TempDir()
			s := open(t, image.Options{Root: root})
			if c.offers != nil {
				c.offers.ServerAddress = strings.ReplaceAll(c.offers.ServerAddress, "HOST", r.Host)
			}
			_, err := s.Pull(t.Context(), &pod.Pull{Ref: ref, Auth: c.offers})
			if !c.want(err) {
				t.Errorf("error %v", err)
			}
			if err != nil {
				wantNothingLeft(t, root)
			}
		})
	}
}

func TestTokenThatIsRefusedIsUnauthenticated(t *testing.T) {
	r := labimage.Registry(t, labimage.Config{Auth: &labimage.Auth{User: "anna", Password: "s3cret", Token: "t0ken"}})
	ref := push(t, r, "app:1", bigImage(t))
	r.SetFault(labimage.Status(http.StatusUnauthorized))
	s := open(t, image.Options{})
	_, err := s.Pull(t.Context(), &pod.Pull{Ref: ref, Auth: &pod.Auth{Username: "anna", Password: "s3cret"}})
	if !errdefs.IsUnauthorized(err) {
		t.Errorf("error %v", err)
	}
}

func isNil(err error) bool { return err == nil }

func hostsTOML(t *testing.T, dir, host, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, host), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, host, "hosts.toml"), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestHostsTOML(t *testing.T) {
	img := build(t, v1.Config{}, []labimage.Entry{labimage.File("a", 0o644, "a")})
	certs := t.TempDir()
	secure := labimage.Registry(t, labimage.Config{TLS: true})
	push(t, secure, "app:1", img)
	ca := filepath.Join(certs, "ca.pem")
	if err := os.WriteFile(ca, secure.CA, 0o600); err != nil {
		t.Fatal(err)
	}
	empty := labimage.Registry(t, labimage.Config{})
	plain := labimage.Registry(t, labimage.Config{})
	push(t, plain, "app:1", img)
	push(t, plain, "deep/app:1", img)
	hostsTOML(t, certs, "ca.example", fmt.Sprintf("server = \"https://%s\"\nca = %q\n", secure.Host, ca))
	hostsTOML(t, certs, "skip.example", fmt.Sprintf("server = \"https://%s\"\nskip_verify = true\n", secure.Host))
	hostsTOML(t, certs, "verify.example", fmt.Sprintf("server = \"https://%s\"\nskip_verify = false\n", secure.Host))
	hostsTOML(t, certs, "mirror.example", fmt.Sprintf(`server = "https://127.0.0.1:1"
[host."http://%s"]
capabilities = ["pull", "resolve"]
[host."http://%s"]
capabilities = ["pull", "resolve"]
`, empty.Host, plain.Host))
	hostsTOML(t, certs, "path.example", fmt.Sprintf(`[host."http://%s/v2/deep"]
capabilities = ["pull", "resolve"]
override_path = true
`, plain.Host))
	hostsTOML(t, certs, "broken.example", "server = [")
	root := t.TempDir()
	s := open(t, image.Options{Root: root, CertsDir: certs})
	for name, c := range map[string]struct {
		ref  string
		want func(error) bool
	}{
		"certificate authority":         {"ca.example/app:1", isNil},
		"skip_verify":                   {"skip.example/app:1", isNil},
		"unknown authority is an error": {"verify.example/app:1", errdefs.IsUnavailable},
		"mirrors in order":              {"mirror.example/app:1", isNil},
		"override_path":                 {"path.example/app:1", isNil},
		"malformed file":                {"broken.example/app:1", errdefs.IsInvalidArgument},
	} {
		_, err := s.Pull(t.Context(), &pod.Pull{Ref: c.ref})
		if !c.want(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if empty.Requests(http.MethodHead, "/manifests/") == 0 {
		t.Error("the first mirror was not asked")
	}
}

func TestHeaderOfHostsTOMLIsSent(t *testing.T) {
	certs := t.TempDir()
	r := labimage.Registry(t, labimage.Config{})
	push(t, r, "app:1", bigImage(t))
	var missing []string
	var mu sync.Mutex
	r.SetFault(func(_ http.ResponseWriter, req *http.Request, _ http.Handler) bool {
		mu.Lock()
		defer mu.Unlock()
		if req.Header.Get("X-Lab") != "yes" {
			missing = append(missing, req.URL.Path)
		}
		return false
	})
	hostsTOML(t, certs, "header.example", fmt.Sprintf("[host.\"http://%s\"]\ncapabilities = [\"pull\", \"resolve\"]\n[host.\"http://%s\".header]\nX-Lab = \"yes\"\n", r.Host, r.Host))
	s := open(t, image.Options{CertsDir: certs})
	pull(t, s, "header.example/app:1")
	mu.Lock()
	defer mu.Unlock()
	if len(missing) > 0 {
		t.Errorf("requests without the header: %v", missing)
	}
}

func TestClientCertificate(t *testing.T) {
	certs := t.TempDir()
	r, cert, key := labimage.MutualTLS(t)
	push(t, r, "app:1", build(t, v1.Config{}, []labimage.Entry{labimage.File("a", 0o644, "a")}))
	for name, data := range map[string][]byte{"c.pem": cert, "k.pem": key, "ca.pem": r.CA} {
		if err := os.WriteFile(filepath.Join(certs, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	hostsTOML(t, certs, "with.example", fmt.Sprintf("server = \"https://%s\"\nca = %q\nclient = [[%q, %q]]\n", r.Host,
		certs+"/ca.pem", certs+"/c.pem", certs+"/k.pem"))
	hostsTOML(t, certs, "without.example", fmt.Sprintf("server = \"https://%s\"\nca = %q\n", r.Host, certs+"/ca.pem"))
	s := open(t, image.Options{CertsDir: certs})
	pull(t, s, "with.example/app:1")
	if _, err := s.Pull(t.Context(), &pod.Pull{Ref: "without.example/app:1"}); !errdefs.IsUnavailable(err) {
		t.Errorf("without a certificate: %v", err)
	}
}

func TestPlatformIsChosenFromAnIndex(t *testing.T) {
	r := labimage.Registry(t, labimage.Config{})
	add := func(content, os, arch, variant string) mutate.IndexAddendum {
		return mutate.IndexAddendum{
			Add:        build(t, v1.Config{}, []labimage.Entry{labimage.File("which", 0o644, content)}),
			Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: os, Architecture: arch, Variant: variant}},
		}
	}
	idx := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex),
		add("windows", "windows", "amd64", ""), add("arm v6", "linux", "arm", "v6"), add("arm v7", "linux", "arm", "v7"),
		add("amd64", "linux", "amd64", ""), add("arm64", "linux", "arm64", "v8"))
	ref, err := r.PushIndex("multi:1", idx)
	if err != nil {
		t.Fatal(err)
	}
	digest, _ := idx.Digest()
	for platform, want := range map[string]string{
		"linux/amd64": "amd64", "linux/arm64": "arm64", "linux/arm/v7": "arm v7", "linux/arm/v6": "arm v6",
	} {
		s := open(t, image.Options{Platform: platform})
		id := pull(t, s, ref)
		if got := read(t, prepare(t, s, "c", id), "which"); got != want {
			t.Errorf("%s got the image for %q", platform, got)
		}
		img, err := s.Get(t.Context(), r.Host+"/multi@"+digest.String())
		if err != nil || img.ID != id {
			t.Errorf("%s: not found by the index's digest: %v", platform, err)
		}
	}
	s := open(t, image.Options{Platform: "linux/s390x"})
	if _, err := s.Pull(t.Context(), &pod.Pull{Ref: ref}); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "linux/arm/v7") {
		t.Errorf("a platform that is not there: %v", err)
	}
}

func TestMediaTypesAndCompressions(t *testing.T) {
	r := labimage.Registry(t, labimage.Config{})
	data, err := labimage.Tar(labimage.File("a", 0o644, noise(100_000)))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]labimage.Compression{"gzip": labimage.Gzip, "zstd": labimage.Zstd, "plain": labimage.None} {
		layer, err := labimage.Layer(data, c)
		if err != nil {
			t.Fatal(err)
		}
		img, err := labimage.Image(v1.Config{Labels: map[string]string{"c": name}}, layer)
		if err != nil {
			t.Fatal(err)
		}
		docker := mutate.ConfigMediaType(mutate.MediaType(img, types.DockerManifestSchema2), types.DockerConfigJSON)
		for kind, img := range map[string]v1.Image{"oci": img, "docker": docker} {
			s := open(t, image.Options{})
			root := prepare(t, s, "c", pull(t, s, push(t, r, name+kind+":1", img)))
			if read(t, root, "a") != noise(100_000) {
				t.Errorf("%s %s: content differs", kind, name)
			}
		}
	}
}

func TestImagesThatCannotRunAreRefused(t *testing.T) {
	r := labimage.Registry(t, labimage.Config{})
	for name, c := range map[string]struct {
		edit func(*v1.Manifest)
		want func(error) bool
		says string
	}{
		"foreign": {func(m *v1.Manifest) { m.Layers[1].MediaType = types.DockerForeignLayer }, errdefs.IsNotImplemented, "foreign"},
		"encrypted": {func(m *v1.Manifest) { m.Layers[0].MediaType = types.OCILayer + "+encrypted" },
			errdefs.IsNotImplemented, "encrypted"},
		"untyped": {func(m *v1.Manifest) { m.Config.MediaType = "" }, errdefs.IsFailedPrecondition, "media type of its config"},
		"odd":     {func(m *v1.Manifest) { m.Layers[0].MediaType = "text/plain" }, errdefs.IsNotImplemented, "text/plain"},
		"fewer":   {func(m *v1.Manifest) { m.Layers = m.Layers[:1] }, errdefs.IsFailedPrecondition, "2 layers"},
	} {
		root := t.TempDir()
		s := open(t, image.Options{Root: root})
		ref := push(t, r, name+":1", labimage.WithManifest(bigImage(t), c.edit))
		_, err := s.Pull(t.Context(), &pod.Pull{Ref: ref})
		if !c.want(err) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
		wantNothingLeft(t, root)
	}
}

func TestNamesOfAnImage(t *testing.T) {
	r := labimage.Registry(t, labimage.Config{})
	one := build(t, v1.Config{}, []labimage.Entry{labimage.File("v", 0o644, "1")})
	two := build(t, v1.Config{}, []labimage.Entry{labimage.File("v", 0o644, "2")})
	first := push(t, r, "app:latest", one)
	s := open(t, image.Options{})
	oldID := pull(t, s, first)
	oldDigest, _ := one.Digest()
	push(t, r, "app:latest", two)
	newID := pull(t, s, first)
	newDigest, _ := two.Digest()
	wantNames(t, s, oldID, nil, []string{r.Host + "/app@" + oldDigest.String()})
	wantNames(t, s, newID, []string{first}, []string{r.Host + "/app@" + newDigest.String()})

	stable := push(t, r, "app:stable", one)
	pull(t, s, stable)
	pull(t, s, r.Host+"/app:stable@"+oldDigest.String())
	other := push(t, r, "other/app:1", one)
	pull(t, s, other)
	wantNames(t, s, oldID, []string{stable, other}, []string{r.Host + "/app@" + oldDigest.String(), r.Host + "/other/app@" + oldDigest.String()})
	if n := r.Requests(http.MethodGet, "/blobs/"); n != 4 {
		t.Errorf("%d blobs were fetched, want 4: names alone fetch nothing", n)
	}

	if err := s.Untag(t.Context(), stable); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(t.Context(), stable); !errdefs.IsNotFound(err) {
		t.Errorf("an untagged name is found: %v", err)
	}
	if err := s.Remove(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(t.Context(), oldID); !errdefs.IsNotFound(err) {
		t.Errorf("an image removed by one of its tags is found: %v", err)
	}
	if all, err := s.List(t.Context()); err != nil || len(all) != 1 || all[0].ID != newID {
		t.Errorf("listed %v, %v", all, err)
	}
}

func wantNames(t *testing.T, s *image.Store, id string, tags, digests []string) {
	t.Helper()
	img, err := s.Get(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(tags)
	slices.Sort(digests)
	if !slices.Equal(img.Tags, tags) || !slices.Equal(img.Digests, digests) {
		t.Errorf("%s has tags %v and digests %v,\nwant %v and %v", id, img.Tags, img.Digests, tags, digests)
	}
}

func TestNamesSurviveARestart(t *testing.T) {
	r := labimage.Registry(t, labimage.Config{})
	ref := push(t, r, "app:latest", build(t, v1.Config{User: "7"}, []labimage.Entry{labimage.File("v", 0o644, "1")}))
	root := t.TempDir()
	s := open(t, image.Options{Root: root})
	id := pull(t, s, ref)
	before, _ := s.Get(t.Context(), id)
	_ = s.Close()
	s = open(t, image.Options{Root: root})
	after, err := s.Get(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	wantNames(t, s, id, before.Tags, before.Digests)
	if after.Size != before.Size || after.User != "7" || !after.Pulled.Equal(before.Pulled) || string(after.Config.Raw) != string(before.Config.Raw) {
		t.Errorf("before the restart %+v, after %+v", before, after)
	}
	n := r.Requests(http.MethodGet, "/blobs/")
	pull(t, s, ref)
	if r.Requests(http.MethodGet, "/blobs/") != n {
		t.Error("a pull after the restart fetched what is there")
	}
}

func TestProgressCountsEveryLayerToItsEnd(t *testing.T) {
	r := labimage.Registry(t, labimage.Config{})
	img := bigImage(t)
	ref := push(t, r, "app:1", img)
	s := open(t, image.Options{})
	done := make(map[string]pod.LayerProgress)
	var mu sync.Mutex
	_, err := s.Pull(t.Context(), &pod.Pull{Ref: ref, Progress: func(p pod.LayerProgress) {
		mu.Lock()
		defer mu.Unlock()
		if p.Done < done[p.Digest].Done {
			t.Errorf("layer %s went back from %d to %d", p.Digest, done[p.Digest].Done, p.Done)
		}
		done[p.Digest] = p
	}})
	if err != nil {
		t.Fatal(err)
	}
	manifest, _ := img.Manifest()
	for _, l := range manifest.Layers {
		if p := done[l.Digest.String()]; p.Done != l.Size || p.Total != l.Size {
			t.Errorf("layer %s ended at %+v, its size is %d", l.Digest, p, l.Size)
		}
	}
}
