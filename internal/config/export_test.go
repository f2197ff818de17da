package config

// Keys are the keys that have a flag.
func Keys() map[string]bool {
	keys := map[string]bool{}
	for _, o := range options() {
		keys[o.key] = o.flag != ""
	}
	return keys
}
