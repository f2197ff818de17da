package keeper

// Abandon ends a session as its client's death does.
func Abandon(s *Session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.killed = true
	_ = s.conn.Close()
}
