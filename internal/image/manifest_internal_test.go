package image

import (
	"testing"

	"github.com/containerd/errdefs"
)

func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":2},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":-1}]}`))
	f.Add([]byte(`{"config":{"mediaType":"application/vnd.docker.container.image.v1+json","digest":"sha512:00"},"layers":null}`))
	f.Add([]byte(`{"rootfs":{"diff_ids":["sha256:zz"]}}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if m, err := parseManifest(data); err == nil {
			for _, l := range m.Layers {
				if l.Size < 0 || l.Digest.Validate() != nil {
					t.Errorf("layer %+v was accepted", l)
				}
			}
		} else if !errdefs.IsFailedPrecondition(err) && !errdefs.IsNotImplemented(err) {
			t.Errorf("unclassified error %v", err)
		}
		if ids, err := parseConfig(data, 1); err == nil && len(layerName(ids[0])) != nameLength {
			t.Errorf("diff id %s gives the layer name %q", ids[0], layerName(ids[0]))
		}
	})
}
