// Package standin builds the images that critest pulls, from Debian's packages and own programs, and
// serves them where a server with the right certs.d finds them under their public names.
package standin

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"gantry/internal/labimage"
)

// hosts are the registries whose images are stood in for.
var hosts = []string{"registry.k8s.io", "k8s.gcr.io", "gcr.io", "public.ecr.aws"}

// Where images lie on their hosts.
const (
	tools = "k8s-staging-cri-tools/" // on gcr.io
	e2e   = "e2e-test-images/"       // on registry.k8s.io
	bench = "docker/library/"        // on public.ecr.aws
)

// Programs are the paths of what the images are made of besides Debian's packages.
type Programs struct {
	Busybox    string // static, with pgrep and ipcs, whose shell looks at PATH
	NoNewPrivs string // prints its effective user id
}

// Hosts are the registries whose images are stood in for.
func Hosts() []string { return slices.Clone(hosts) }

// Serve starts a registry with every stand-in at the address listen ("": any port of 127.0.0.1) and writes
// a hosts.toml for each registry below certsDir. The caller closes it.
func Serve(p Programs, certsDir, listen string) (*labimage.Server, error) {
	all, err := p.images()
	if err != nil {
		return nil, err
	}
	s, err := labimage.Serve(labimage.Config{Listen: listen})
	if err != nil {
		return nil, err
	}
	for name, img := range all {
		if _, err := s.Push(name, img); err != nil {
			s.Close()
			return nil, err
		}
	}
	for _, host := range hosts {
		if err := mirror(filepath.Join(certsDir, host), s.Host); err != nil {
			s.Close()
			return nil, err
		}
	}
	return s, nil
}

func mirror(dir, address string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	text := fmt.Sprintf("server = \"http://%[1]s\"\n\n[host.\"http://%[1]s\"]\ncapabilities = [\"pull\", \"resolve\"]\n", address)
	return os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o600)
}

// images are all stand-ins by repository and tag, without the host.
func (p Programs) images() (map[string]v1.Image, error) {
	shell, err := p.shell()
	if err != nil {
		return nil, err
	}
	all := make(map[string]v1.Image)
	for name, make := range map[string]func([]labimage.Entry) (v1.Image, error){
		e2e + "busybox:1.29-2": plain,
		e2e + "nginx:1.14-2":   nginx(80),
		tools + "hostnet-nginx-" + runtime.GOARCH + ":latest": nginx(12003),
		e2e + "httpd:2.4.39-4":                                httpd,
		e2e + "nonewprivs:1.3":                                p.noNewPrivs,
		tools + "test-image-predefined-group:latest":          user("1000"),
		tools + "test-image-user-uid:latest":                  user("1002"),
		tools + "test-image-user-username:latest":             user("www-data"),
		tools + "test-image-user-uid-group:latest":            user("1003:1004"),
		tools + "test-image-user-username-group:latest":       user("www-data:1004"),
		tools + "test-image-latest:latest":                    marked("latest"),
		tools + "test-image-tag:test":                         marked("tag"),
		tools + "test-image-tag:all":                          marked("all"),
		tools + "test-image-digest:latest":                    marked("digest"),
		tools + "test-image-1:latest":                         marked("1"),
		tools + "test-image-2:latest":                         marked("2"),
		tools + "test-image-3:latest":                         marked("3"),
		tools + "test-image-tags:1":                           marked("tags"),
		tools + "test-image-tags:2":                           marked("tags"),
		tools + "test-image-tags:3":                           marked("tags"),
		"pause:3.9":                                           pause,
		bench + "busybox:1.35.0-glibc":                        marked("1.35.0-glibc"),
		bench + "busybox:1-uclibc":                            marked("1-uclibc"),
		bench + "busybox:1":                                   plain,
		bench + "busybox:1-glibc":                             marked("1-glibc"),
		bench + "busybox:1-musl":                              marked("1-musl"),
	} {
		if all[name], err = make(shell); err != nil {
			return nil, fmt.Errorf("stand-in for %s: %w", name, err)
		}
	}
	return all, nil
}

const (
	passwd = `root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
default-user:x:1000:1000:Linux User,,,:/home/default-user:/bin/sh
`
	group = `root:x:0:
daemon:x:1:
tty:x:5:
www-data:x:33:
nobody:x:65534:
default-user:x:1000:
group-defined-in-image:x:50000:default-user
`
	path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// shell are the files of a busybox image.
func (p Programs) shell() ([]labimage.Entry, error) {
	var all []labimage.Entry
	for _, d := range []string{"bin", "dev", "etc", "home", "home/default-user", "proc", "root", "run", "sbin", "sys",
		"usr", "usr/bin", "usr/sbin", "var", "var/log"} {
		all = append(all, labimage.Dir(d, 0o755))
	}
	all = append(all, labimage.Dir("tmp", 0o1777), labimage.Symlink("var/run", "../run"),
		labimage.File("etc/passwd", 0o644, passwd), labimage.File("etc/group", 0o644, group))
	program, err := os.ReadFile(p.Busybox)
	if err != nil {
		return nil, err
	}
	applets, err := exec.CommandContext(context.Background(), p.Busybox, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("%s --list: %w", p.Busybox, err)
	}
	all = append(all, labimage.File("bin/busybox", 0o755, string(program)))
	for _, applet := range strings.Fields(string(applets)) {
		if applet != "busybox" {
			all = append(all, labimage.Link("bin/"+applet, "bin/busybox"))
		}
	}
	return all, nil
}

func plain(shell []labimage.Entry) (v1.Image, error) {
	return labimage.Build(v1.Config{Cmd: []string{"sh"}, Env: []string{path}}, shell)
}

// user makes an image whose processes run as name: user[:group].
func user(name string) func([]labimage.Entry) (v1.Image, error) {
	return func(shell []labimage.Entry) (v1.Image, error) {
		return labimage.Build(v1.Config{Cmd: []string{"sh"}, Env: []string{path}, User: name}, shell)
	}
}

// marked makes an image that differs from others by a file.
func marked(name string) func([]labimage.Entry) (v1.Image, error) {
	return func(shell []labimage.Entry) (v1.Image, error) {
		config := v1.Config{Env: []string{path}, Cmd: []string{"sh"}}
		return labimage.Build(config, shell, []labimage.Entry{labimage.File("image", 0o644, name+"\n")})
	}
}

// pause makes an image whose process waits for ever.
func pause(shell []labimage.Entry) (v1.Image, error) {
	return labimage.Build(v1.Config{Env: []string{path}, Entrypoint: []string{"sleep", "infinity"}}, shell)
}

const nginxConf = `daemon off;
user www-data;
worker_processes 1;
pid /run/nginx.pid;
error_log /dev/stderr notice;
events { worker_connections 64; }
http {
  access_log /dev/stdout;
  types { text/html html; }
  server { listen %d; root /www; }
}
`

// nginx makes an image of Debian's nginx, listening on port.
func nginx(port int) func([]labimage.Entry) (v1.Image, error) {
	return func(shell []labimage.Entry) (v1.Image, error) {
		const binary = "/usr/sbin/nginx"
		program, err := labimage.Program(binary)
		if err != nil {
			return nil, err
		}
		site := []labimage.Entry{labimage.Dir("www", 0o755), labimage.File("www/index.html", 0o644, "<p>nginx</p>\n")}
		for _, d := range []string{"etc/nginx", "var/log/nginx", "var/lib", "var/lib/nginx", "var/lib/nginx/body",
			"var/lib/nginx/proxy", "var/lib/nginx/fastcgi", "var/lib/nginx/uwsgi", "var/lib/nginx/scgi"} {
			site = append(site, labimage.Dir(d, 0o755))
		}
		site = append(site, labimage.File("etc/nginx/nginx.conf", 0o644, fmt.Sprintf(nginxConf, port)))
		config := v1.Config{Env: []string{path}, StopSignal: "SIGQUIT", Entrypoint: []string{binary, "-c", "/etc/nginx/nginx.conf"}}
		return labimage.Build(config, shell, program, site)
	}
}

// httpd makes an image that serves HTTP on port 80 and says its name in its log.
func httpd(shell []labimage.Entry) (v1.Image, error) {
	config := v1.Config{Env: []string{path}, Cmd: []string{"sh", "-c", "echo httpd; exec httpd -f -p 80 -h /www"}}
	return labimage.Build(config, shell, []labimage.Entry{
		labimage.Dir("www", 0o755), labimage.File("www/index.html", 0o644, "<p>It works!</p>\n"),
	})
}

// noNewPrivs makes an image of a set-user-ID program.
func (p Programs) noNewPrivs(shell []labimage.Entry) (v1.Image, error) {
	program, err := os.ReadFile(p.NoNewPrivs)
	if err != nil {
		return nil, err
	}
	config := v1.Config{Env: []string{path}, Cmd: []string{"/nonewprivs"}}
	return labimage.Build(config, shell, []labimage.Entry{labimage.File("nonewprivs", 0o4755, string(program))})
}
