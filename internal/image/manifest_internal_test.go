package image

import (
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
)

func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":2},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":-1}]}`))
	f.Add([]byte(`{"config":{"mediaType":"application/vnd.docker.container.image.v1+json","digest":"sha512:00"},"layers":null}`))
	f.Add([]byte(`{"rootfs":{"diff_ids":["sha256:zz"]}}`))
	f.Add([]byte(`[]`))
	f.Add([]byte(`{"artifactType":"a/b","config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[{"mediaType":"text/plain","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0,"annotations":{"org.opencontainers.image.title":"a/b"}},{"mediaType":"x.tar+gzip","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := parseManifest(data)
		var d *described
		if err == nil {
			d, err = newDescribed(data, m, data)
		}
		if err != nil {
			if !errdefs.IsFailedPrecondition(err) && !errdefs.IsNotImplemented(err) {
				t.Errorf("unclassified error %v", err)
			}
			return
		}
		for _, l := range d.layers {
			if l.blob.Size < 0 || l.blob.Digest.Validate() != nil || checkName(l.name()) != nil {
				t.Errorf("layer %+v was accepted", l)
			}
			if d.artifact != "" && !filepath.IsLocal(l.File) {
				t.Errorf("a file %q was accepted", l.File)
			}
		}
	})
}
