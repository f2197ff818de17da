package pod

import "time"

// Image is an image in a store. ID is whatever its store calls it (native: the config digest);
// it equals the CRI's image_ref, Image.id and image_id.
type Image struct {
	ID          string            `json:"id"`
	Tags        []string          `json:"tags,omitempty"`    // "host/name:tag", canonical
	Digests     []string          `json:"digests,omitempty"` // "host/name@sha256:…"
	Size        uint64            `json:"size"`              // bytes on disk, unpacked
	User        string            `json:"user,omitempty"`    // config.User: "", "uid", "name", "uid:gid"
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Pinned      bool              `json:"pinned,omitempty"` // the kubelet's garbage collection spares it
	// Artifact is the type of an OCI artifact, which can be mounted but not run; "" is an image.
	Artifact string      `json:"artifact,omitempty"`
	Config   ImageConfig `json:"config"`
	Pulled   time.Time   `json:"pulled"`
}

// ImageConfig is what an image says about how to run it (OCI image config).
type ImageConfig struct {
	Entrypoint []string            `json:"entrypoint,omitempty"`
	Cmd        []string            `json:"cmd,omitempty"`
	Env        []string            `json:"env,omitempty"`
	WorkingDir string              `json:"workingDir,omitempty"`
	StopSignal string              `json:"stopSignal,omitempty"`
	Volumes    map[string]struct{} `json:"volumes,omitempty"`
	// Raw is the config blob, for verbose status and export.
	Raw []byte `json:"-"`
}

// Auth is what the client offers a registry (CRI AuthConfig); at most one way is used.
type Auth struct {
	Username      string
	Password      string
	Auth          string // base64 "user:password"
	ServerAddress string
	IdentityToken string
	RegistryToken string
}

// Pull is a request for an image.
type Pull struct {
	Ref         string // as the user wrote it: name, name:tag, name@digest
	Auth        *Auth  // nil: anonymous
	Annotations map[string]string
	// Progress, if set, is called often, from several goroutines.
	Progress func(LayerProgress)
}

// LayerProgress is how far one layer of a pull has come.
type LayerProgress struct {
	Digest string
	Done   int64 // compressed bytes
	Total  int64 // compressed bytes, 0 when the registry did not say
}

// Usage is what a store occupies on one file system.
type Usage struct {
	Mountpoint string
	At         time.Time
	Bytes      uint64
	Inodes     uint64
}
