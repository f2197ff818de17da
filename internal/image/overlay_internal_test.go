package image

import (
	"strings"
	"testing"
)

func TestALabelIsAQuotedOptionOfTheMount(t *testing.T) {
	info := &rootInfo{Layers: []layerRecord{{Name: "a"}}}
	const label = "system_u:object_r:container_file_t:s0:c1,c2"
	if got := newOverlay("dir", info, label).options(); !strings.HasSuffix(got, `workdir=dir/work,context="`+label+`"`) {
		t.Errorf("options %s", got)
	}
	if got := newOverlay("dir", info, "").options(); got != "lowerdir=a,upperdir=dir/upper,workdir=dir/work" {
		t.Errorf("without a label: %s", got)
	}
}
