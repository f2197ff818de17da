package bridge

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"gantry/internal/atomicfile"
)

// record is what an attachment holds, written before the first of it is made visible, so that a
// successor of this process can take it back.
type record struct {
	Boot      string       `json:"boot"`
	Container string       `json:"container"`
	IfName    string       `json:"ifName"`
	Link      string       `json:"link"` // the veth's end on the node
	Addresses []netip.Addr `json:"addresses,omitempty"`
	Ports     []portRule   `json:"ports,omitempty"`
	// Leaving says that DEL was answered: the link is to go, and then the addresses are free.
	Leaving bool `json:"leaving,omitempty"`
}

func (s *segment) newRecord(id attachmentID) *record {
	return &record{Boot: s.boot, Container: id.Container, IfName: id.IfName, Link: linkName(id)}
}

func (s *segment) recordPath(id attachmentID) string {
	return filepath.Join(s.dir, id.Container+"-"+id.IfName+".json")
}

func (s *segment) writeRecord(id attachmentID, r *record) error {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("record: %w", err)
	}
	return atomicfile.Write(s.recordPath(id), data, 0o600)
}

// load reads what earlier processes of this boot left: their records, and leases that were taken
// just before a crash and have no record.
func (s *segment) load() error {
	s.records = make(map[attachmentID]*record)
	s.live = make(map[attachmentID]struct{})
	s.claims = make(claims)
	s.told = make(map[string]struct{})
	s.checked = make(map[checkKind]time.Time)
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return fmt.Errorf("attachments: %w", err)
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("attachments: %w", err)
	}
	for _, e := range entries {
		if err = s.loadRecord(filepath.Join(s.dir, e.Name())); err != nil {
			return err
		}
	}
	held, err := s.leases.load()
	if err != nil {
		return err
	}
	for addr, id := range held {
		id.Bridge = s.name
		r := s.records[id]
		if r == nil {
			r = s.newRecord(id)
			s.records[id] = r
		}
		if !slices.Contains(r.Addresses, addr) {
			r.Addresses = append(r.Addresses, addr)
		}
	}
	return nil
}

// loadRecord removes what is no record of this boot.
func (s *segment) loadRecord(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("attachments: %w", err)
	}
	var r record
	if err := json.Unmarshal(data, &r); err != nil || r.Boot != s.boot || atomicfile.IsTemporary(path) {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("attachments: %w", err)
		}
		return nil
	}
	id := attachmentID{Bridge: s.name, Container: r.Container, IfName: r.IfName}
	s.records[id] = &r
	s.claims.add(id, r.Ports)
	return nil
}
