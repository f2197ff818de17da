// Package labimage builds small container images from the binaries that Debian installed on this
// machine and serves them from a registry on the loopback. Only tests and demonstrations import it.
package labimage

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/compression"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
)

// Epoch is the time of every file that says no other.
var Epoch = time.Date(2024, time.February, 29, 12, 30, 15, 123456789, time.UTC)

// Entry is one entry of a layer's tar.
type Entry struct {
	tar.Header
	Content []byte
}

// Dir is a directory.
func Dir(name string, mode int64) Entry {
	return Entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: strings.TrimSuffix(name, "/") + "/", Mode: mode, ModTime: Epoch}}
}

// File is a regular file.
func File(name string, mode int64, content string) Entry {
	return Entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, ModTime: Epoch}, Content: []byte(content)}
}

// Link is a hard link to target.
func Link(name, target string) Entry {
	return Entry{Header: tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, ModTime: Epoch}}
}

// Symlink is a symbolic link to target.
func Symlink(name, target string) Entry {
	return Entry{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777, ModTime: Epoch}}
}

// Whiteout removes name, which a lower layer has.
func Whiteout(name string) Entry {
	return File(path.Join(path.Dir(name), ".wh."+path.Base(name)), 0o644, "")
}

// Opaque hides what lower layers have in the directory dir.
func Opaque(dir string) Entry { return File(path.Join(dir, ".wh..wh..opq"), 0o644, "") }

// Tar writes entries as a tar, in PAX format so that times are kept to the nanosecond.
func Tar(entries ...Entry) ([]byte, error) {
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	modes := make(map[string]int64)
	for _, e := range entries {
		h := e.Header
		// Unpackers give a link's mode to the file that all its names share.
		if of, ok := modes[h.Linkname]; ok && h.Typeflag == tar.TypeLink && h.Mode == 0 {
			h.Mode = of
		}
		modes[h.Name] = h.Mode
		h.Size = int64(len(e.Content))
		if h.Format == tar.FormatUnknown {
			h.Format = tar.FormatPAX
		}
		if err := tw.WriteHeader(&h); err != nil {
			return nil, fmt.Errorf("layer entry %s: %w", h.Name, err)
		}
		if _, err := tw.Write(e.Content); err != nil {
			return nil, fmt.Errorf("layer entry %s: %w", h.Name, err)
		}
	}
	if err := tw.Close(); err != nil {
		return nil, fmt.Errorf("layer: %w", err)
	}
	return buf.Bytes(), nil
}

// Compression of a layer.
type Compression = compression.Compression

// The compressions that layers may have.
const (
	Gzip = compression.GZip
	Zstd = compression.ZStd
	None = compression.None
)

// Layer makes a layer of a tar.
func Layer(data []byte, c Compression) (v1.Layer, error) {
	mediaType := types.OCILayer
	switch c {
	case Zstd:
		mediaType = types.OCILayerZStd
	case None: // package tarball would compress it all the same
		return static.NewLayer(data, types.OCIUncompressedLayer), nil
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }
	return tarball.LayerFromOpener(open, tarball.WithCompression(c), tarball.WithMediaType(mediaType))
}

// ZstdLayer makes a layer of a tar, compressed with a window of that many bytes.
func ZstdLayer(data []byte, window int) (v1.Layer, error) {
	var out bytes.Buffer
	z, err := zstd.NewWriter(&out, zstd.WithWindowSize(window))
	if err != nil {
		return nil, err
	}
	// a frame whose whole content is known when it begins has a window of that size
	half := len(data) / 2
	_, err = z.Write(data[:half])
	if err = errors.Join(err, z.Flush()); err == nil {
		_, err = z.Write(data[half:])
	}
	if err = errors.Join(err, z.Close()); err != nil {
		return nil, err
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(out.Bytes())), nil }
	return tarball.LayerFromOpener(open, tarball.WithMediaType(types.OCILayerZStd))
}

// Build makes an image of layers given as entries, the lowest first, and a configuration.
func Build(config v1.Config, layers ...[]Entry) (v1.Image, error) {
	all := make([]v1.Layer, 0, len(layers))
	for _, entries := range layers {
		data, err := Tar(entries...)
		if err != nil {
			return nil, err
		}
		l, err := Layer(data, Gzip)
		if err != nil {
			return nil, err
		}
		all = append(all, l)
	}
	return Image(config, all...)
}

// Image makes an OCI image of layers, the lowest first, for this machine's architecture.
func Image(config v1.Config, layers ...v1.Layer) (v1.Image, error) {
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.AppendLayers(img, layers...)
	if err != nil {
		return nil, err
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.Architecture, file.OS, file.Config = runtime.GOARCH, "linux", config
	file.Created = v1.Time{Time: Epoch}
	return mutate.ConfigFile(img, file)
}

const (
	passwd = `root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
gantry:x:1000:1000:gantry:/home/gantry:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/bin/false
`
	group = `root:x:0:
daemon:x:1:
tty:x:5:
www-data:x:33:
crew:x:500:gantry
dock:x:501:gantry,daemon
gantry:x:1000:
nogroup:x:65534:
`
)

// base are the directories and files that every image here has.
func base() []Entry {
	var all []Entry
	for _, d := range []string{"bin", "dev", "etc", "home", "home/gantry", "proc", "root", "run", "sbin", "sys", "usr", "usr/bin", "usr/sbin", "var", "var/log"} {
		all = append(all, Dir(d, 0o755))
	}
	home := &all[4]
	home.Uid, home.Gid = 1000, 1000
	tmp := Dir("tmp", 0o1777)
	return append(all, tmp, File("etc/passwd", 0o644, passwd), File("etc/group", 0o644, group),
		File("etc/hostname", 0o644, "image\n"), File("etc/os-release", 0o644, "ID=gantry-lab\n"))
}

// busybox are the entries of a shell and its applets.
func busybox() ([]Entry, error) {
	binary, err := exec.LookPath("busybox")
	if err != nil {
		return nil, fmt.Errorf("busybox (Debian: busybox-static): %w", err)
	}
	content, err := os.ReadFile(binary)
	if err != nil {
		return nil, err
	}
	list, err := exec.CommandContext(context.Background(), binary, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("busybox --list: %w", err)
	}
	all := []Entry{File("bin/busybox", 0o755, string(content))}
	for _, applet := range strings.Fields(string(list)) {
		if applet != "busybox" {
			all = append(all, Link("bin/"+applet, "bin/busybox"))
		}
	}
	return all, nil
}

// Busybox is an image with a shell, its applets and a few users. Changes edit its configuration.
func Busybox(changes ...func(*v1.Config)) (v1.Image, error) {
	applets, err := busybox()
	if err != nil {
		return nil, err
	}
	config := v1.Config{
		Cmd:    []string{"sh"},
		Env:    []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		Labels: map[string]string{"gantry.lab": "busybox"},
	}
	for _, change := range changes {
		change(&config)
	}
	return Build(config, append(base(), applets...))
}

// Page is what the web image answers to GET /.
const Page = "gantry: the page of the lab's web image\n"

const nginxConf = `daemon off;
user www-data;
worker_processes 1;
pid /run/nginx.pid;
error_log /dev/stderr notice;
events { worker_connections 64; }
http {
  access_log /dev/stdout;
  types { text/html html; }
  server { listen 80; root /www; }
}
`

// Web is an image whose process listens on port 80 and answers Page: nginx where Debian's is
// installed, else busybox's httpd.
func Web() (v1.Image, error) {
	applets, err := busybox()
	if err != nil {
		return nil, err
	}
	site := []Entry{Dir("www", 0o755), File("www/index.html", 0o644, Page)}
	config := v1.Config{
		Env:          []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"},
		ExposedPorts: map[string]struct{}{"80/tcp": {}},
		StopSignal:   "SIGQUIT",
		Labels:       map[string]string{"gantry.lab": "web"},
	}
	nginx, err := exec.LookPath("nginx")
	if err != nil {
		if nginx, err = exec.LookPath("/usr/sbin/nginx"); err != nil {
			config.Entrypoint, config.StopSignal = []string{"/bin/httpd", "-f", "-v", "-p", "80", "-h", "/www"}, "SIGTERM"
			return Build(config, append(base(), applets...), site)
		}
	}
	program, err := Program(nginx)
	if err != nil {
		return nil, err
	}
	for _, d := range []string{"var/log/nginx", "var/lib", "var/lib/nginx", "var/lib/nginx/body", "var/lib/nginx/proxy",
		"var/lib/nginx/fastcgi", "var/lib/nginx/uwsgi", "var/lib/nginx/scgi", "etc/nginx"} {
		site = append(site, Dir(d, 0o755))
	}
	site = append(site, File("etc/nginx/nginx.conf", 0o644, nginxConf))
	config.Entrypoint = []string{nginx, "-c", "/etc/nginx/nginx.conf"}
	return Build(config, append(base(), applets...), program, site)
}

// Program are the entries of a dynamically linked program and the libraries that it names.
func Program(binary string) ([]Entry, error) {
	out, err := exec.CommandContext(context.Background(), "ldd", binary).Output()
	if err != nil {
		return nil, fmt.Errorf("ldd %s: %w", binary, err)
	}
	files := map[string]bool{binary: true}
	for _, word := range strings.Fields(string(out)) {
		if strings.HasPrefix(word, "/") {
			files[word] = true
		}
	}
	dirs := make(map[string]bool)
	var entries []Entry
	for _, f := range slices.Sorted(maps.Keys(files)) {
		content, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		entries = append(entries, File(strings.TrimPrefix(f, "/"), 0o755, string(content)))
		for d := filepath.Dir(f); d != "/"; d = filepath.Dir(d) {
			dirs[d] = true
		}
	}
	var all []Entry
	for _, d := range slices.Sorted(maps.Keys(dirs)) {
		all = append(all, Dir(strings.TrimPrefix(d, "/"), 0o755))
	}
	return append(all, entries...), nil
}
