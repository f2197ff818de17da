package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"gantry/cmd/gantry/internal/client"
	"gantry/cmd/gantry/internal/manifest"
)

// cleanupTime bounds what is done after the user interrupted, besides the grace period.
const cleanupTime = 2 * time.Minute

// exitInterrupted is what shells report for SIGINT.
const exitInterrupted = 130

const runLong = `Run the pod of a core/v1 Pod manifest.

Without --wait the command ends when the containers were started and prints the pod's id. With --wait
it prints what they write, each line behind its container's name where there are several, ends when
all of them ended, and its exit code is that of the first container that failed. An interrupt stops
the pod. --rm removes the pod when its containers ended; it implies --wait.

Of the manifest everything is honoured that a single node can do. What a cluster, a scheduler or the
kubelet would do with it is named on standard error: probes, placement, and restartPolicy, for a
container is started once. Volumes are emptyDir and hostPath; everything else is refused by name.
emptyDir volumes and logs lie below --dir until ` + "`gantry rm`" + ` removes the pod.`

type runOptions struct {
	file  string
	dir   string
	wait  bool
	rm    bool
	quiet bool
}

func (a *app) runCommand() *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use: "run -f FILE", Short: "Run a pod from a manifest", Long: runLong, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.file == "" {
				return &usageError{cmd.CommandPath(), errors.New("--file is missing")}
			}
			p, err := a.readManifest(o)
			if err != nil {
				return err
			}
			o.wait = o.wait || o.rm
			return a.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				return (&runner{app: a, client: c, opts: o, pod: p}).run(ctx)
			})
		},
	}
	cmd.Flags().StringVarP(&o.file, "file", "f", "", "manifest `FILE`; - for standard input")
	cmd.Flags().BoolVar(&o.wait, "wait", false, "print logs, wait for the containers, and end with their exit code")
	cmd.Flags().BoolVar(&o.rm, "rm", false, "remove the pod when its containers ended; implies --wait")
	cmd.Flags().BoolVarP(&o.quiet, "quiet", "q", false, "with --wait, print no logs")
	cmd.Flags().StringVar(&o.dir, "dir", "/var/lib/gantry-pods", "`DIR` of the pods' logs and emptyDir volumes")
	return cmd
}

func (a *app) readManifest(o runOptions) (*manifest.Pod, error) {
	data, err := readFile(o.file, a.std.In)
	if err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	dir, err := filepath.Abs(o.dir)
	if err != nil {
		return nil, fmt.Errorf("--dir: %w", err)
	}
	resolv, err := os.ReadFile("/etc/resolv.conf")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read the node's DNS: %w", err)
	}
	// The directory is named by an id of its own: a manifest may bring the pod's UID, and bring it twice.
	id := uuid.NewString()
	p, err := manifest.Parse(data, manifest.Options{
		UID: id, Dir: filepath.Join(dir, id), MemoryDir: memoryDir(id), ResolvConf: resolv,
		FirstID: firstID(),
	})
	if err != nil {
		return nil, err
	}
	for _, n := range p.Notes {
		fmt.Fprintln(a.err, "note:", n)
	}
	return p, nil
}

// firstID chooses the ids of a pod with a user namespace, far above those that kubelets and /etc/subuid give out. The
// server refuses a pod whose ids another one has.
func firstID() uint32 { return 1<<30 + rand.Uint32N(1<<14)<<16 }

func readFile(name string, stdin io.Reader) ([]byte, error) {
	if name == "-" {
		return io.ReadAll(stdin)
	}
	return os.ReadFile(name)
}

// runner is one `gantry run`.
type runner struct {
	*app
	client *client.Client
	opts   runOptions
	pod    *manifest.Pod
	box    *v1.PodSandbox // once it exists
	tails  tails
}

// run starts the pod and, with --wait, sees it through. Whatever fails before all containers run
// takes the pod down again.
func (r *runner) run(ctx context.Context) error {
	if err := r.unique(ctx); err != nil {
		return err
	}
	err := r.start(ctx)
	started := err == nil
	if started && !r.opts.wait {
		fmt.Fprintln(r.out, r.box.Id)
		return nil
	}
	if started {
		err = r.attend(ctx)
	}
	// A pod that never ran as it should is of no use; one whose init container failed is kept for a look.
	end := r.stop
	if r.opts.rm || !started && !errors.As(err, new(exitCode)) {
		end = r.remove
	}
	if endErr := end(ctx); endErr != nil {
		fmt.Fprintln(r.err, "gantry:", client.Message(endErr))
		if err == nil {
			err = exitCode(exitFailure)
		}
	}
	if ctx.Err() != nil {
		return exitCode(exitInterrupted)
	}
	return err
}

// unique refuses a second ready pod of one name: it could not be told apart by it.
func (r *runner) unique(ctx context.Context) error {
	meta := r.pod.Sandbox.Metadata
	pods, err := r.client.Runtime.ListPodSandbox(ctx, &v1.PodSandboxFilter{
		State: &v1.PodSandboxStateValue{State: v1.PodSandboxState_SANDBOX_READY},
	})
	if err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	for _, p := range pods {
		if p.Metadata.GetName() == meta.Name && p.Metadata.GetNamespace() == meta.Namespace {
			return fmt.Errorf("pod %s runs already as %s", client.PodName(p), client.Short(p.Id))
		}
	}
	return nil
}

func (r *runner) start(ctx context.Context) error {
	if err := makeDirectories(r.pod); err != nil {
		return err
	}
	// An interrupt waits for this call: the server would go on without it, and its pod would stay.
	id, err := r.client.Runtime.RunPodSandbox(context.WithoutCancel(ctx), r.pod.Sandbox, r.pod.Handler)
	if err != nil {
		return fmt.Errorf("run pod: %w", err)
	}
	r.box = &v1.PodSandbox{Id: id, Metadata: r.pod.Sandbox.Metadata, Annotations: r.pod.Sandbox.Annotations}
	for _, c := range r.pod.Init {
		if err := r.initContainer(ctx, c); err != nil {
			return err
		}
	}
	for _, c := range r.pod.Containers {
		if _, err := r.container(ctx, c, true); err != nil {
			return err
		}
	}
	return nil
}

// initContainer runs c to its end, or leaves a sidecar running.
func (r *runner) initContainer(ctx context.Context, c manifest.Container) error {
	name := c.Config.Metadata.Name
	id, err := r.container(ctx, c, false)
	if err != nil || c.Sidecar {
		return err
	}
	st, err := waitEnd(ctx, r.client, id)
	if err != nil {
		return fmt.Errorf("init container %s: %w", name, err)
	}
	if st.ExitCode != 0 {
		fmt.Fprintf(r.err, "gantry: init container %s: %s, exit code %d\n", name, st.Reason, st.ExitCode)
		if r.opts.wait {
			return errors.Join(exitCode(st.ExitCode), r.tails.wait())
		}
		return fmt.Errorf("init container %s failed; the pod was removed", name)
	}
	return nil
}

// container brings the image, creates and starts. counts says that --wait waits for it.
func (r *runner) container(ctx context.Context, c manifest.Container, counts bool) (string, error) {
	name := c.Config.Metadata.Name
	if err := r.image(ctx, c); err != nil {
		return "", fmt.Errorf("container %s: %w", name, err)
	}
	id, err := r.client.Runtime.CreateContainer(ctx, r.box.Id, c.Config, r.pod.Sandbox)
	if err != nil {
		return "", fmt.Errorf("create container %s: %w", name, err)
	}
	if err := r.client.Runtime.StartContainer(ctx, id); err != nil {
		return "", fmt.Errorf("start container %s: %w", name, err)
	}
	if r.opts.wait {
		r.follow(ctx, c, id, counts)
	}
	return id, nil
}

// stop and remove work on after an interrupt, for a bounded time.
func (r *runner) stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.pod.Grace+cleanupTime)
	defer cancel()
	return errors.Join(stopPod(ctx, r.client, r.box.Id, r.pod.Grace), r.tails.wait())
}

func (r *runner) remove(ctx context.Context) error {
	if r.box == nil {
		return removeDirectoriesOf(r.pod.Sandbox.Annotations[manifest.AnnotationDirectory])
	}
	err := r.stop(ctx)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
	defer cancel()
	return errors.Join(err, removePod(ctx, r.client, r.box, true))
}
