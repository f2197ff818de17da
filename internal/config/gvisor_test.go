package config_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"gantry/internal/config"
)

func TestDocumentedGVisorConfigurationIsLegal(t *testing.T) {
	set := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	flags := config.AddFlags(set)
	if err := set.Parse([]string{"--config", "../../examples/gvisor.toml"}); err != nil {
		t.Fatal(err)
	}
	o, err := flags.Load(config.Finder{LookPath: func(name string) (string, error) { return "/usr/bin/" + name, nil }, SelfDir: "/usr/bin"})
	if err != nil {
		t.Fatal(err)
	}
	if o.Runtime.Default != "crun" || o.Runtime.Paths["runsc"] != "/usr/local/bin/runsc" {
		t.Errorf("runtimes are %v, the default %s", o.Runtime.Paths, o.Runtime.Default)
	}
	if got := strings.Fields(o.Runtime.Options["runsc"]); !slices.Equal(got, []string{"--platform=systrap", "--overlay2=none"}) {
		t.Errorf("runsc's options are %q", got)
	}
}

func TestOptionsAreOfHandlersThatAre(t *testing.T) {
	o := config.Default()
	o.Runtime.Paths["runsc"] = "/usr/local/bin/runsc"
	o.Runtime.Default, o.Keeper.Binary = "runsc", "/usr/bin/gantry-keeper"
	o.Runtime.Options = map[string]string{"kata": "--debug"}
	if err := o.Validate(); err == nil || !strings.Contains(err.Error(), "kata") {
		t.Errorf("%v; want an error that names the handler", err)
	}
}
