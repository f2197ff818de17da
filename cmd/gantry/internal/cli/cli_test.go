package cli_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	imagev1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/rogpeppe/go-internal/testscript"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/cmd/gantry/internal/cli"
	"gantry/cmd/gantry/internal/client"
	"gantry/internal/admin"
	"gantry/internal/cri"
	"gantry/internal/image"
	"gantry/internal/labimage"
	"gantry/internal/streaming"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"gantry": func() {
		os.Exit(cli.Main(context.Background(), os.Args[1:], cli.Stdio{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}))
	}})
}

// start serves a backend of its own below dir and returns the endpoint.
func start(t testing.TB, dir string) (endpoint string, stop func()) {
	t.Helper()
	b := &backend{}
	streams, err := streaming.New(b, streaming.Options{Listen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = streams.Serve() }()
	g := cri.NewServer(cri.New(cri.Options{
		Pods: b, Containers: b, Resizer: b, Views: b, Statistics: b, Events: b, Streams: b, Images: b, Node: b, URLs: streams, Version: "test",
	}), cri.Interceptors{})
	path := filepath.Join(dir, "gantry.sock")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = g.Serve(ln) }()
	stopAdmin := startAdmin(t, dir)
	return "unix://" + path, func() {
		stopAdmin()
		g.Stop()
		if err := streams.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}
}

// startAdmin serves the admin socket below dir, with an image store in dir/images.
func startAdmin(t testing.TB, dir string) (stop func()) {
	t.Helper()
	store, err := image.Open(image.Options{Root: filepath.Join(dir, "images")})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("unix", filepath.Join(dir, admin.SocketName))
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: admin.Handler(admin.Parts{Pulls: &admin.Pulls{}, Images: store})}
	go func() { _ = srv.Serve(ln) }()
	return func() {
		if err := errors.Join(srv.Close(), store.Close()); err != nil {
			t.Error(err)
		}
	}
}

// writeImage writes docker.io/library/app:1, which has one file /hello, as a docker-archive.
func writeImage(path string) error {
	img, err := labimage.Build(imagev1.Config{}, []labimage.Entry{labimage.File("hello", 0o644, "hello")})
	if err != nil {
		return err
	}
	tag, err := name.NewTag("app:1")
	if err != nil {
		return err
	}
	return tarball.WriteToFile(path, tag, img)
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			tb, ok := e.T().(testing.TB)
			if !ok {
				return errors.New("no testing.TB behind testscript")
			}
			endpoint, stop := start(tb, e.WorkDir)
			e.Defer(stop)
			e.Setenv("GANTRY_ENDPOINT", endpoint)
			return writeImage(filepath.Join(e.WorkDir, "app.tar"))
		},
	})
}

var forwarding = regexp.MustCompile(`Forwarding from (127\.0\.0\.1:\d+) -> 80`)

func TestPortForward(t *testing.T) {
	dir := t.TempDir()
	endpoint, stop := start(t, dir)
	defer stop()
	manifest := filepath.Join(dir, "pod.yaml")
	if err := os.WriteFile(manifest, []byte("apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: a, image: x:1}]}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	std := cli.Stdio{In: os.Stdin, Out: w, Err: os.Stderr}
	if code := cli.Main(t.Context(), []string{"--endpoint", endpoint, "run", "-f", manifest, "--dir", dir}, std); code != 0 {
		t.Fatalf("run: exit code %d", code)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan int, 1)
	go func() {
		done <- cli.Main(ctx, []string{"--endpoint", endpoint, "port-forward", "web", ":80", "--address", "127.0.0.1"}, std)
		_ = w.Close()
	}()
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		m := forwarding.FindStringSubmatch(lines.Text())
		if m == nil {
			continue
		}
		conn, err := net.Dial("tcp", m[1])
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(conn); string(got) != "port 80\n" || err != nil {
			t.Errorf("through the port: %q, %v", got, err)
		}
		_ = conn.Close()
		cancel()
	}
	cancel()
	if code := <-done; code != 0 {
		t.Errorf("port-forward: exit code %d", code)
	}
}

func TestInterruptEndsThePod(t *testing.T) {
	for name, tt := range map[string]struct {
		flag string
		left bool
	}{"--wait stops it": {"--wait", true}, "--rm removes it": {"--rm", false}} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			endpoint, stop := start(t, dir)
			defer stop()
			manifest := filepath.Join(dir, "pod.yaml")
			text := "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: a, image: 'x:1', command: ['out:up']}]}\n"
			if err := os.WriteFile(manifest, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			go func() {
				defer cancel() // once the container runs, or when nothing came
				_, _ = bufio.NewReader(r).ReadString('\n')
			}()
			args := []string{"--endpoint", endpoint, "run", tt.flag, "-f", manifest, "--dir", filepath.Join(dir, "pods")}
			if code := cli.Main(ctx, args, cli.Stdio{In: os.Stdin, Out: w, Err: os.Stderr}); code != 130 {
				t.Errorf("exit code %d", code)
			}
			_ = w.Close()
			c, err := client.Connect(t.Context(), endpoint)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Close(t.Context()) }()
			pods, err := c.Runtime.ListPodSandbox(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			if tt.left != (len(pods) == 1) {
				t.Errorf("left: %v", pods)
			}
			for _, p := range pods {
				if p.State == v1.PodSandboxState_SANDBOX_READY {
					t.Errorf("still runs: %v", p)
				}
			}
		})
	}
}
