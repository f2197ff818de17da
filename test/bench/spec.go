package main

import (
	"encoding/json"
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// edit gives a generated OCI configuration a command and no terminal.
func edit(config []byte, args []string) ([]byte, error) {
	var spec specs.Spec
	if err := json.Unmarshal(config, &spec); err != nil {
		return nil, fmt.Errorf("generated OCI configuration: %w", err)
	}
	spec.Process.Args, spec.Process.Terminal = args, false
	return json.Marshal(&spec)
}
