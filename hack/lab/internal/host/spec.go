// Package host runs processes in the lab's hosts. A host is a set of namespaces
// (network, mount, pid, host name) held by one process, the holder, which is
// init inside. Nothing of a host has a name outside: when the holder ends, the
// kernel ends every process of the host, and its mounts, links and routes go
// with the last of them.
package host

import (
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
)

// HolderArg as the first argument makes the lab's binary a holder.
const HolderArg = "__hold"

// Spec is what a holder sets up before it says that it is ready.
type Spec struct {
	Name string `json:"name"`
	// Root holds the directories that the host has for itself, by their path.
	Root string `json:"root"`
	// Private are the directories and files that are bound from below Root.
	Private []string `json:"private"`
}

// Source is the directory that appears at path inside the host.
func (s Spec) Source(path string) string { return filepath.Join(s.Root, path) }

func readSpec(r io.Reader) (Spec, error) {
	var s Spec
	if err := json.NewDecoder(r).Decode(&s); err != nil {
		return s, fmt.Errorf("read the host's spec: %w", err)
	}
	return s, nil
}
