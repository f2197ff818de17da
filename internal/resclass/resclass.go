// Package resclass finds the classes of block I/O and of Intel RDT (cache and memory bandwidth) that pods
// ask for by annotation, under the names that CRI-O and containerd know:
//
//	blockio.resources.beta.kubernetes.io/pod              of all containers of a pod
//	blockio.resources.beta.kubernetes.io/container.NAME   of one
//	rdt.resources.beta.kubernetes.io/…                    likewise
//
// What a class of block I/O means stands in a file of github.com/intel/goresctrl; an RDT class is a
// directory of the kernel's resctrl file system, which that file's counterpart makes or somebody else has made.
//
// Errors: ErrInvalidArgument for a class that is not there, ErrFailedPrecondition for one on a node that has no
// classes of its kind.
package resclass

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/intel/goresctrl/pkg/blockio"
	"github.com/intel/goresctrl/pkg/kubernetes"
	"github.com/intel/goresctrl/pkg/rdt"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// ResctrlRoot is where the kernel's resctrl file system is mounted (Documentation/filesystems/resctrl.rst).
const ResctrlRoot = "/sys/fs/resctrl"

// Options say where classes are.
type Options struct {
	BlockIOFile string // "": there are no classes of block I/O
	RDTFile     string // "": the classes are those that are there
	ResctrlRoot string // "" is ResctrlRoot
}

// Classes are the classes of a node. There is one in a process: goresctrl keeps those of block I/O in
// variables of its own.
type Classes struct {
	blockIO bool
	resctrl string
	rdt     error // why RDTFile is not in force
}

// Load reads the files. A file of block I/O that can't be used is an error; so that a node whose kernel lost RDT still
// starts, one of RDT is an error to those who ask for a class of it.
func Load(o Options) (*Classes, error) {
	c := &Classes{blockIO: o.BlockIOFile != "", resctrl: o.ResctrlRoot}
	if c.resctrl == "" {
		c.resctrl = ResctrlRoot
	}
	if c.blockIO {
		if err := blockio.SetConfigFromFile(o.BlockIOFile, false); err != nil {
			return nil, fmt.Errorf("classes of block I/O: %w", err)
		}
	}
	if o.RDTFile != "" {
		if c.rdt = rdt.Initialize(""); c.rdt == nil {
			c.rdt = rdt.SetConfigFromFile(o.RDTFile, false)
		}
	}
	return c, nil
}

// Container is a container that may have a class.
type Container struct {
	Name           string
	Annotations    map[string]string // its own
	PodAnnotations map[string]string
	HasIO          bool // the node's cgroups have a controller of block I/O
	// BlockIO and RDT are classes that count instead of those of annotations; "" is none.
	BlockIO *string
	RDT     *string
}

// Found are the classes of a container; empty ones were not asked for.
type Found struct {
	BlockIO string
	RDT     string
}

// Apply puts into the spec what the container's classes mean.
func (c *Classes) Apply(of *Container, spec *specs.Linux) (Found, error) {
	var found Found
	var err error
	if found.BlockIO, err = c.applyBlockIO(of, spec); err != nil {
		return Found{}, err
	}
	found.RDT, err = c.applyRDT(of, spec)
	return found, err
}

// Asked are the classes that the container would have, whether the node has them or not.
func (of *Container) Asked() (Found, error) {
	class, err := of.blockIOClass()
	return Found{BlockIO: class, RDT: of.rdtClass()}, err
}

func (of *Container) blockIOClass() (string, error) {
	if of.BlockIO != nil {
		return *of.BlockIO, nil
	}
	return blockio.ContainerClassFromAnnotations(of.Name, of.Annotations, of.PodAnnotations)
}

func (of *Container) rdtClass() string {
	if of.RDT != nil {
		return *of.RDT
	}
	class, _ := kubernetes.ContainerClassFromAnnotations(rdt.RdtContainerAnnotation, rdt.RdtPodAnnotation,
		rdt.RdtPodAnnotationContainerPrefix, of.Name, of.Annotations, of.PodAnnotations)
	return class
}

func (c *Classes) applyBlockIO(of *Container, spec *specs.Linux) (string, error) {
	class, err := of.blockIOClass()
	if err != nil || class == "" {
		return "", err
	}
	switch {
	case !c.blockIO:
		return "", fmt.Errorf("blockio class %q: the node has none (resource_classes.blockio_file): %w", class, errdefs.ErrFailedPrecondition)
	case !of.HasIO:
		return "", fmt.Errorf("blockio class %q: the node's cgroups have no controller of block I/O: %w", class, errdefs.ErrFailedPrecondition)
	}
	limits, err := blockio.OciLinuxBlockIO(class)
	if err != nil {
		return "", fmt.Errorf("blockio class %q: the node has %q: %w", class, blockio.GetClasses(), errdefs.ErrInvalidArgument)
	}
	if spec.Resources == nil {
		spec.Resources = &specs.LinuxResources{}
	}
	spec.Resources.BlockIO = limits
	return class, nil
}

func (c *Classes) applyRDT(of *Container, spec *specs.Linux) (string, error) {
	class := of.rdtClass()
	if class == "" {
		return "", nil
	}
	if c.rdt != nil {
		return "", fmt.Errorf("rdt class %q: %w: %w", class, errdefs.ErrFailedPrecondition, c.rdt)
	}
	if !rdt.IsQualifiedClassName(class) || class != filepath.Base(class) || reserved(class) {
		return "", fmt.Errorf("rdt class %q is no name of one: %w", class, errdefs.ErrInvalidArgument)
	}
	if _, err := os.Stat(filepath.Join(c.resctrl, "schemata")); err != nil {
		return "", fmt.Errorf("rdt class %q: the kernel has no RDT, or %s is not mounted: %w", class, c.resctrl, errdefs.ErrFailedPrecondition)
	}
	_, err := os.Stat(filepath.Join(c.resctrl, class, "schemata"))
	if errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("rdt class %q: it is not in %s: %w", class, c.resctrl, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return "", fmt.Errorf("rdt class %q: %w", class, err)
	}
	spec.IntelRdt = &specs.LinuxIntelRdt{ClosID: class}
	return class, nil
}

// reserved are directories of resctrl that are no classes.
func reserved(name string) bool { return name == "info" || name == "mon_data" || name == "mon_groups" }
