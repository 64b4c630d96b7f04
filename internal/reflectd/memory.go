// SPDX-License-Identifier: Apache-2.0

package reflectd

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/heliograph-dev/heliograph/bgp/reflector"
)

const beatEvery = 5 * time.Second

// Memory is what a reflector's restart needs to know: whom to wait for (RFC 4724 §4.1). The age of its
// file tells the next process for how long nobody has run. Without a Dir it remembers nothing.
type Memory struct {
	Dir  string
	beat time.Time
}

type memory struct {
	Established []netip.Addr `json:"established"`
}

func (m *Memory) file() string { return filepath.Join(m.Dir, "established.json") }

// Remember writes who is connected, or is still expected. RememberKnown is cheaper.
func (m *Memory) Remember(snapshot reflector.Snapshot) error {
	who := snapshot.Deferring
	for _, s := range snapshot.Sessions {
		if s.State == "Established" || len(s.Stale) > 0 {
			who = append(who, s.Address)
		}
	}
	return m.write(who)
}

// RememberKnown writes whom the reflector knows.
func (m *Memory) RememberKnown(engine *reflector.Reflector) error {
	if m.Dir == "" {
		return nil
	}
	return m.write(engine.Known())
}

func (m *Memory) write(who []netip.Addr) error {
	if m.Dir == "" {
		return nil
	}
	b, err := json.Marshal(memory{Established: who})
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	if err := os.MkdirAll(m.Dir, 0o700); err != nil {
		return err
	}
	// Renamed into place: a crash leaves the old list or the new one. No fsync: a crash of the machine
	// ends the clients' stale timers as well.
	next := m.file() + ".next"
	if err := os.WriteFile(next, b, 0o600); err != nil {
		return err
	}
	return os.Rename(next, m.file())
}

// Beat keeps the file young. It says whether there is none, and so something to Remember.
func (m *Memory) Beat(now time.Time) (missing bool) {
	if m.Dir == "" || now.Sub(m.beat) < beatEvery {
		return false
	}
	m.beat = now
	return errors.Is(os.Chtimes(m.file(), now, now), os.ErrNotExist)
}

// Remembered returns who was connected a moment ago. After the window nobody waits for us either.
func (m *Memory) Remembered(now time.Time, window time.Duration) ([]netip.Addr, error) {
	if m.Dir == "" {
		return nil, nil
	}
	info, err := os.Stat(m.file())
	if err != nil || now.Sub(info.ModTime()) > window {
		return nil, nil //nolint:nilerr // a first start
	}
	var what memory
	b, err := os.ReadFile(m.file())
	if err == nil {
		err = json.Unmarshal(b, &what)
	}
	if err != nil {
		return nil, fmt.Errorf("read who was connected: %w", err)
	}
	return what.Established, nil
}

// Forget removes the file: who was here has been told that we go.
func (m *Memory) Forget() error {
	if m.Dir == "" {
		return nil
	}
	if err := os.Remove(m.file()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
