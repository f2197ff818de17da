package bridge

// SetHook has fn called by every call that has its attachment's lock, before its work.
func (b *Bridge) SetHook(fn func(verb string)) { b.hook = fn }
