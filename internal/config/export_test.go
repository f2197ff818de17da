package config

// Keys are the keys that have a flag.
func Keys() map[string]bool {
	keys := map[string]bool{}
	for _, o := range options() {
		keys[o.key] = o.flag != ""
	}
	return keys
}

// FlagOf is the flag of a key.
func FlagOf(key string) string {
	for _, o := range options() {
		if o.key == key {
			return o.flag
		}
	}
	return ""
}
