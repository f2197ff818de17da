package bridge_test

import (
	"fmt"

	"gantry/internal/bridge"
)

// The list that `--network builtin` uses, to start from when other plugins are to follow.
func ExampleConflist() {
	fmt.Println(string(bridge.Conflist(bridge.Config{MTU: 1400})))
	// Output:
	// {
	//   "cniVersion": "1.1.0",
	//   "name": "gantry",
	//   "plugins": [
	//     {
	//       "type": "gantry-bridge",
	//       "bridge": "gantry0",
	//       "subnets": [
	//         "10.87.0.0/16",
	//         "fd67:616e:7472:7900::/64"
	//       ],
	//       "mtu": 1400,
	//       "capabilities": {
	//         "portMappings": true
	//       }
	//     }
	//   ]
	// }
}
