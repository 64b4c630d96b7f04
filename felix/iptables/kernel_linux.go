// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/heliograph-dev/heliograph/policy"
)

// Variant is which of the kernel's two firewalls iptables' commands talk to.
type Variant string

// Variants.
const (
	Auto   Variant = ""
	NFT    Variant = "nft"
	Legacy Variant = "legacy"
)

// ErrNoIPTables is returned by Open if the host has no commands of iptables.
var ErrNoIPTables = errors.New("the host has no iptables")

// Kernel is the host's iptables and ipset.
type Kernel struct {
	*ipset
	variant  Variant
	restores *Restores
	commands map[policy.Family]commands
}

// commands are paths.
type commands struct{ save, restore string }

// Open finds the commands of a variant, or of the one that the host uses, and opens ipset. It acts on the
// present network namespace. What it changes it tells to restores. Close it after use.
func Open(v Variant, restores *Restores) (*Kernel, error) {
	if v == Auto {
		v = detect()
	}
	k := &Kernel{variant: v, restores: restores, commands: map[policy.Family]commands{}}
	for f, name := range map[policy.Family]string{policy.IPv4: "iptables", policy.IPv6: "ip6tables"} {
		if _, err := os.Stat("/proc/net/if_inet6"); f == policy.IPv6 && err != nil {
			continue // a kernel without IPv6 has no packets of it either
		}
		c, err := find(name, v)
		if err != nil {
			return nil, err
		}
		k.commands[f] = c
	}
	sets, err := openIPSet()
	if err != nil {
		return nil, err
	}
	k.ipset = sets
	return k, nil
}

// Variant returns which variant it talks to.
func (k *Kernel) Variant() Variant { return k.variant }

// find looks for a variant's commands: by its own name, or by the common one if that is it.
func find(name string, v Variant) (commands, error) {
	for _, base := range []string{name + "-" + string(v), name} {
		save, err := exec.LookPath(base + "-save")
		if err != nil {
			continue
		}
		restore, err := exec.LookPath(base + "-restore")
		if err != nil {
			continue
		}
		out, err := exec.Command(restore, "--version").Output() //nolint:gosec // found in the path
		if err == nil && variantOf(string(out)) == v {
			return commands{save, restore}, nil
		}
	}
	return commands{}, fmt.Errorf("find %s-%s-save and -restore: %w", name, v, ErrNoIPTables)
}

// variantOf reads "iptables-restore v1.8.9 (nf_tables)". Before 1.8 there was only one.
func variantOf(version string) Variant {
	if strings.Contains(version, "nf_tables") {
		return NFT
	}
	return Legacy
}

// detect tells which variant other people's rules stand in; where nobody has any, nft. What is asked
// must not load the legacy tables into a kernel that had none.
func detect() Variant {
	if !hasRules(NFT) && legacyTables() && hasRules(Legacy) {
		return Legacy
	}
	if _, err := find("iptables", NFT); err != nil {
		return Legacy
	}
	return NFT
}

func legacyTables() bool {
	for _, name := range []string{"ip_tables_names", "ip6_tables_names"} {
		if b, err := os.ReadFile("/proc/net/" + name); err == nil && len(bytes.TrimSpace(b)) > 0 {
			return true
		}
	}
	return false
}

// hasRules says whether anybody but us has chains or rules.
func hasRules(v Variant) bool {
	for _, name := range []string{"iptables", "ip6tables"} {
		c, err := find(name, v)
		if err != nil {
			continue
		}
		out, err := exec.Command(c.save).Output() //nolint:gosec // found in the path
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(out)) {
			ours := strings.Contains(line, prefix)
			if !ours && (strings.HasPrefix(line, "-A ") || strings.HasPrefix(line, ":") && strings.Contains(line, " - ")) {
				return true
			}
		}
	}
	return false
}

// Save implements Handle.
func (k *Kernel) Save(ctx context.Context, f policy.Family) ([]byte, error) {
	if _, ok := k.commands[f]; !ok {
		return nil, nil
	}
	return run(ctx, nil, func(int) {}, k.commands[f].save, "-c", "-t", "filter")
}

// Restore implements Handle. It waits for others who hold the lock.
func (k *Kernel) Restore(ctx context.Context, f policy.Family, input []byte) error {
	if _, ok := k.commands[f]; !ok {
		return nil
	}
	told := func(int) {}
	if k.variant == NFT {
		told = k.restores.add
	}
	_, err := run(ctx, input, told, k.commands[f].restore, "--noflush", "-w", "5")
	return err
}

// run runs a command to its end; started is told its number.
func run(ctx context.Context, input []byte, started func(pid int), name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...) //nolint:gosec // found in the path
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), &stdout, &stderr
	err := cmd.Start()
	if err == nil {
		started(cmd.Process.Pid)
		err = cmd.Wait()
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil, &RestoreError{Command: name, Code: exit.ExitCode(), Output: stderr.String()}
	}
	if err != nil {
		return nil, fmt.Errorf("run %s: %w", name, err)
	}
	return stdout.Bytes(), nil
}
