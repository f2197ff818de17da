package selabel

// Taken says whether anybody has the categories of l.
func (b *Book) Taken(l Labels) bool {
	for _, level := range b.taken {
		if level == l.level() {
			return true
		}
	}
	return false
}
