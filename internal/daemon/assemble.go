package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"gantry/internal/bridge"
	"gantry/internal/cgroup"
	"gantry/internal/cni"
	"gantry/internal/config"
	"gantry/internal/engine"
	"gantry/internal/engine/docker"
	"gantry/internal/engine/native"
	"gantry/internal/image"
	"gantry/internal/keeper"
	"gantry/internal/lifecycle"
	"gantry/internal/observe"
	"gantry/internal/ociruntime"
	"gantry/internal/pod"
	"gantry/internal/projquota"
	"gantry/internal/resclass"
	"gantry/internal/selabel"
	"gantry/internal/stats"
	"gantry/internal/store"
)

// keeperCgroup is the cgroup of keepers, outside every pod's.
const keeperCgroup = "/gantry-keeper"

// parts are what serving needs.
type parts struct {
	manager      *lifecycle.Manager
	images       *image.Store
	native       *native.Engine // nil where there is no OCI runtime
	docker       *docker.Engine // nil where none is configured
	dockerImages *docker.Images // of docker
	engines      map[string]engine.Engine
	stores       map[string]engine.Images
	keeper       *keeper.Client
	plugins      *plugins
}

// assemble makes the parts below the CRI. What it made is closed by close, also when it fails.
func (s *server) assemble(ctx context.Context) (*parts, error) {
	o := s.opts
	if len(o.Runtime.Paths) == 0 && o.Engine == config.EngineNative {
		return nil, errors.New("no OCI runtime: neither crun nor runc is on PATH; install one, or name one with --runtime NAME=PATH")
	}
	if err := s.mayTakeOver(ctx); err != nil {
		return nil, err
	}
	if o.Keeper.Binary == "" {
		return nil, errors.New("gantry-keeper is neither beside the gantry binary nor on PATH; name it with --keeper PATH")
	}
	ids, err := projquota.ParseRange(o.Images.Projects)
	if err != nil {
		return nil, err
	}
	images, err := image.Open(image.Options{
		Root: filepath.Join(o.Root, "images"), CertsDir: o.Images.CertsDir, Pinned: o.Images.Pinned,
		ParallelLayers: o.Images.Parallel, Bandwidth: int64(o.Images.Bandwidth) * 1e6, NoSync: o.Images.Sync == "never",
		Projects: ids,
		Log:      s.log.With("component", "image"),
		Hook:     s.points.Reached,
	})
	if err != nil {
		return nil, err
	}
	s.onClose("image store", func(context.Context) error { return images.Close() })
	journal, err := s.openJournal()
	if err != nil {
		return nil, err
	}
	network, err := s.openNetwork()
	if err != nil {
		return nil, err
	}
	measured, err := observe.NewNetwork(network, s.registry)
	if err != nil {
		return nil, err
	}
	kept, err := s.connectKeeper(ctx)
	if err != nil {
		return nil, err
	}
	p := &parts{images: images, keeper: kept, engines: map[string]engine.Engine{}, stores: map[string]engine.Images{}}
	if err = s.openEngines(p); err != nil {
		return nil, err
	}
	cgroups, err := cgroup.Open(cgroup.DefaultRoot)
	if err != nil {
		return nil, err
	}
	plugins, told, err := s.openPlugins()
	if err != nil {
		return nil, err
	}
	p.plugins = plugins
	handlers, features := handlersOf(o, p.Features(ctx))
	p.manager, err = lifecycle.New(lifecycle.Options{
		Engines:       p.engines,
		Images:        p.stores,
		Handlers:      handlers,
		Features:      features,
		Network:       measured,
		Journal:       journal,
		Logs:          kept,
		Plugins:       told,
		Meter:         stats.New(cgroups, p.layers()),
		LogBounds:     pod.LogBounds{Rate: int64(o.Logs.Rate), Size: int64(o.Logs.Size), FullWait: time.Duration(o.Logs.Wait)},
		StateDir:      o.State,
		CheckpointDir: filepath.Join(o.Root, "checkpoints"),
		SystemdCgroup: s.systemdCgroup(ctx, p.docker),
		TakeOver:      o.Docker.TakeOver,
		Log:           s.log.With("component", "lifecycle"),
		Hook:          s.reached,
		Trace:         s.traceStep(),
	})
	if err != nil {
		return nil, err
	}
	s.onClose("pods", p.manager.Close)
	return p, nil
}

// openEngines makes the engines that there are: native with an OCI runtime, docker with a daemon.
func (s *server) openEngines(p *parts) error {
	if len(s.opts.Runtime.Paths) > 0 {
		eng, err := s.nativeEngine(p.keeper, p.images)
		if err != nil {
			return err
		}
		p.native, p.engines[config.EngineNative], p.stores[config.EngineNative] = eng, eng, p.images
	}
	d, err := s.dockerEngine(p.keeper)
	if err != nil || d == nil {
		return err
	}
	p.docker, p.dockerImages = d, d.Images()
	p.engines[config.EngineDocker], p.stores[config.EngineDocker] = d, p.dockerImages
	return nil
}

// layers know the writable layers of each engine.
func (p *parts) layers() layers {
	if p.docker == nil {
		return layers{p.images}
	}
	return layers{p.images, p.dockerImages}
}

// SetRuntimes replaces the OCI runtimes. Without one at the start there is no engine that could use them.
func (p *parts) SetRuntimes(runtimes map[string]ociruntime.Runtime, standard string) error {
	if p.native == nil {
		return nil
	}
	return p.native.SetRuntimes(runtimes, standard)
}

// Features is what each handler was found to be able to do.
func (p *parts) Features(ctx context.Context) map[string]pod.HandlerFeatures {
	all := map[string]pod.HandlerFeatures{}
	if p.native != nil {
		all = p.native.Features(ctx)
	}
	if p.docker != nil {
		all[config.EngineDocker] = p.docker.Features(ctx)
	}
	return all
}

// reached is where fault tests end the server.
func (s *server) reached(p lifecycle.Point) error {
	s.points.Reached(p.String())
	return nil
}

func (s *server) openJournal() (*store.Store, error) {
	boot, err := store.BootID()
	if err != nil {
		return nil, err
	}
	journal, err := store.Open(filepath.Join(s.opts.Root, "journal"), boot)
	if err != nil {
		return nil, err
	}
	journal.OnPoint(s.points.Reached)
	s.onClose("journal", func(context.Context) error { return journal.Close() })
	return journal, nil
}

// openNetwork gives CNI the builtin plugin in either mode: a conflist may name it too.
func (s *server) openNetwork() (*cni.Network, error) {
	n := s.opts.Network
	log := s.log.With("component", "network")
	builtin, err := bridge.New(bridge.Options{StateDir: filepath.Join(s.opts.State, "bridge"), Log: log, Hook: s.points.Reached})
	if err != nil {
		return nil, err
	}
	s.onClose("builtin network", builtin.Close)
	opts := cni.Options{
		ConfDir: n.CNIConfDir, BinDirs: n.CNIBinDirs, CacheDir: filepath.Join(s.opts.Root, "cni"),
		Exec: builtin.Exec(cni.NewExec(log)), Log: log,
	}
	if s.traces != nil {
		opts.Exec = s.traces.CNI(opts.Exec)
	}
	if n.Mode == "builtin" {
		if opts.Config, err = conflist(n.Builtin); err != nil {
			return nil, err
		}
	}
	network, err := cni.New(opts)
	if err != nil {
		return nil, err
	}
	s.onClose("network", func(context.Context) error { return network.Close() })
	return network, nil
}

// conflist is the network configuration of the builtin network.
func conflist(o config.Builtin) ([]byte, error) {
	conf := bridge.Config{Bridge: o.Bridge, MTU: o.MTU}
	for _, text := range o.Subnets {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("subnet: %w", err)
		}
		conf.Subnets = append(conf.Subnets, p)
	}
	return bridge.Conflist(conf), nil
}

func (s *server) connectKeeper(ctx context.Context) (*keeper.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, keeperTimeout)
	defer cancel()
	c, err := keeper.Connect(ctx, keeper.Options{
		StateDir: filepath.Join(s.opts.State, "keeper"), Binary: s.opts.Keeper.Binary, CgroupPath: keeperCgroup,
		Log: s.log.With("component", "keeper"),
	})
	if err != nil {
		return nil, err
	}
	s.onClose("keeper", func(context.Context) error { return c.Close() })
	return c, nil
}

func (s *server) nativeEngine(k *keeper.Client, images *image.Store) (*native.Engine, error) {
	driver, err := cgroup.ParseDriver(s.opts.Cgroup.Driver)
	if err != nil {
		return nil, err
	}
	classes, err := resclass.Load(resclass.Options{BlockIOFile: s.opts.Classes.BlockIO, RDTFile: s.opts.Classes.RDT})
	if err != nil {
		return nil, err
	}
	var traced native.Keeper = k
	if s.traces != nil {
		traced = &tracedKeeper{k, s.traces}
	}
	return native.New(native.Options{
		Keeper: traced, Rootfs: images, Changes: images, Classes: classes,
		Labels: selabel.Node(s.opts.SELinux.Enabled), Runtimes: runtimesOf(s.opts), DefaultRuntime: s.opts.Runtime.Default,
		StateDir: filepath.Join(s.opts.State, "native"), NetNSDir: s.opts.Network.NetNSDir,
		CgroupDriver: driver, PauseBinary: s.opts.Keeper.Binary, CDISpecDirs: s.opts.Runtime.CDIDirs, Hook: s.points.Reached,
	})
}

// runtimesOf are the OCI runtimes by handler.
func runtimesOf(o *config.Options) map[string]ociruntime.Runtime {
	runtimes := make(map[string]ociruntime.Runtime, len(o.Runtime.Paths))
	for name, path := range o.Runtime.Paths {
		runtimes[name] = ociruntime.Runtime{Path: path, Args: strings.Fields(o.Runtime.Options[name])}
	}
	return runtimes
}

// handlersOf are the runtimes' names, that of Docker where there is one, and "" for the default engine,
// with what was found that they can do.
func handlersOf(o *config.Options, found map[string]pod.HandlerFeatures) (map[string]string, map[string]pod.HandlerFeatures) {
	handlers := map[string]string{"": o.Engine}
	features := map[string]pod.HandlerFeatures{}
	for name := range o.Runtime.Paths {
		handlers[name] = config.EngineNative
		features[name] = found[name]
	}
	if o.Docker.Endpoint != "" {
		handlers[config.EngineDocker] = config.EngineDocker
		features[config.EngineDocker] = found[config.EngineDocker]
	}
	features[""] = found[o.Runtime.Default]
	if o.Engine == config.EngineDocker {
		features[""] = found[config.EngineDocker]
	}
	return handlers, features
}
