// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/heliograph-dev/heliograph/policy"
)

// ruleset is the chains of one family: what they should be, and what the kernel lacks of it.
type ruleset struct {
	family policy.Family
	want   map[string]chain
	dirty  map[string]bool // not in the kernel as they are wanted
	gone   map[string]bool // perhaps in the kernel, and not wanted
	unhook []string        // lines that remove jumps of ours which stand where they should not
	hook   []string        // lines that insert those that are missing
}

// chain is its lines as iptables-restore reads them. Each has a hash in its comment, of all that it says:
// what iptables prints differs between versions, a comment does not.
type chain struct {
	lines  []string
	hashes []string
}

func newRuleset(f policy.Family) *ruleset {
	r := &ruleset{family: f, want: map[string]chain{}, dirty: map[string]bool{}, gone: map[string]bool{}}
	r.put(static(f))
	return r
}

func write(name string, list []line) chain {
	var c chain
	for i, l := range list {
		hash := policy.Hash(fmt.Sprint(name, i, l))
		text := "-A " + name
		if l.match != "" {
			text += " " + l.match
		}
		about := "#" + hash
		if l.comment != "" {
			about = l.comment + " #" + hash
		}
		text += ` -m comment --comment "` + strings.NewReplacer(`"`, `'`, `\`, `/`).Replace(about) + `" ` + l.target
		c.lines, c.hashes = append(c.lines, text), append(c.hashes, hash)
	}
	return c
}

// put wants chains.
func (r *ruleset) put(cs chains) {
	for name, list := range cs {
		c := write(name, list)
		if old, ok := r.want[name]; !ok || !slices.Equal(old.hashes, c.hashes) {
			r.want[name], r.dirty[name] = c, true
			delete(r.gone, name)
		}
	}
}

// replace wants new instead of old chains.
func (r *ruleset) replace(old, with chains) {
	for name := range old {
		if _, stays := with[name]; !stays {
			delete(r.want, name)
			delete(r.dirty, name)
			r.gone[name] = true
		}
	}
	r.put(with)
}

// pending says whether the kernel lacks anything.
func (r *ruleset) pending() bool {
	return len(r.dirty)+len(r.gone)+len(r.unhook)+len(r.hook) > 0
}

// input is what makes the kernel's rules those that are wanted, in one transaction: chains that change
// are emptied and filled, and what nobody refers to any more is removed last.
func (r *ruleset) input() []byte {
	var b bytes.Buffer
	b.WriteString("*filter\n")
	gone := slices.Sorted(maps.Keys(r.gone))
	r.fill(&b, slices.Sorted(maps.Keys(r.dirty)), gone)
	for _, l := range slices.Concat(r.unhook, r.hook) {
		b.WriteString(l + "\n")
	}
	for _, name := range gone {
		b.WriteString("-X " + name + "\n")
	}
	b.WriteString("COMMIT\n")
	return b.Bytes()
}

// part is the input for some chains alone.
func (r *ruleset) part(names []string) []byte {
	var b bytes.Buffer
	b.WriteString("*filter\n")
	r.fill(&b, names, nil)
	b.WriteString("COMMIT\n")
	return b.Bytes()
}

func (r *ruleset) fill(b *bytes.Buffer, names, empty []string) {
	for _, name := range slices.Concat(names, empty) {
		b.WriteString(":" + name + " - [0:0]\n")
	}
	for _, name := range names {
		for _, l := range r.want[name].lines {
			b.WriteString(l + "\n")
		}
	}
}

func (r *ruleset) committed() {
	r.dirty, r.gone, r.hook, r.unhook = map[string]bool{}, map[string]bool{}, nil, nil
}

// hooks are the kernel's chains that jump to ours.
func hooks() map[string]line {
	return map[string]line{
		"FORWARD": {target: "-j " + chainForward},
		"INPUT":   {target: "-j " + chainInput},
		"OUTPUT":  {target: "-j " + chainOutput},
	}
}

// learn compares the kernel's rules with those that are wanted, and returns the first difference.
func (r *ruleset) learn(saved []byte) (drift string) {
	actual := parse(saved)
	r.committed()
	differs := func(format string, args ...any) {
		if drift == "" {
			drift = fmt.Sprintf(format, args...)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.want)) {
		hashes, exists := actual.chains[name]
		if !exists || !slices.Equal(hashes, r.want[name].hashes) {
			differs("chain %s has %d lines, or other ones than the %d of ours", name, len(hashes), len(r.want[name].hashes))
			r.dirty[name] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(actual.chains)) {
		if _, wanted := r.want[name]; !wanted {
			differs("chain %s is not wanted", name)
			r.gone[name] = true
		}
	}
	wanted := hooks()
	for _, name := range slices.Sorted(maps.Keys(wanted)) {
		c := write(name, []line{wanted[name]})
		if actual.first[name] && slices.Equal(actual.hooks[name], c.hashes) {
			continue
		}
		differs("chain %s does not jump to %s%s first", name, prefix, name)
		r.unhook = append(r.unhook, actual.jumps[name]...)
		r.hook = append(r.hook, "-I"+strings.TrimPrefix(c.lines[0], "-A"))
	}
	return drift
}

// removal is the input that removes all that is ours.
func removal(saved []byte) []byte {
	actual := parse(saved)
	var b bytes.Buffer
	b.WriteString("*filter\n")
	names := slices.Sorted(maps.Keys(actual.chains))
	for _, name := range names {
		b.WriteString(":" + name + " - [0:0]\n")
	}
	for _, name := range slices.Sorted(maps.Keys(actual.jumps)) {
		for _, l := range actual.jumps[name] {
			b.WriteString(l + "\n")
		}
	}
	for _, name := range names {
		b.WriteString("-X " + name + "\n")
	}
	b.WriteString("COMMIT\n")
	return b.Bytes()
}

// kernelRules is what iptables-save printed, as far as it concerns us.
type kernelRules struct {
	chains map[string][]string // ours, with their lines' hashes; "" for a line that has none
	hooks  map[string][]string // hashes of the lines in the kernel's chains that jump to ours
	jumps  map[string][]string // what removes those
	first  map[string]bool     // the first line of the chain is ours
	counts map[string]policy.Count
}

func parse(saved []byte) kernelRules {
	k := kernelRules{map[string][]string{}, map[string][]string{}, map[string][]string{}, map[string]bool{}, map[string]policy.Count{}}
	seen := map[string]bool{}
	for text := range strings.Lines(string(saved)) {
		text = strings.TrimSpace(text)
		if name, isChain := strings.CutPrefix(text, ":"); isChain {
			if name, _, _ = strings.Cut(name, " "); isOurs(name) {
				k.chains[name] = nil
			}
			continue
		}
		count, text := cutCount(text)
		rest, isRule := strings.CutPrefix(text, "-A ")
		if !isRule {
			continue
		}
		name, rest, _ := strings.Cut(rest, " ")
		about, hash := cutComment(rest)
		ours := strings.Contains(rest, "-j "+prefix) || strings.Contains(rest, "-g "+prefix)
		switch {
		case isOurs(name):
			k.chains[name] = append(k.chains[name], hash)
			if about != "" {
				sum := k.counts[about]
				k.counts[about] = policy.Count{Packets: sum.Packets + count.Packets, Bytes: sum.Bytes + count.Bytes}
			}
		case ours && hooks()[name].target != "":
			k.first[name] = k.first[name] || !seen[name]
			k.hooks[name] = append(k.hooks[name], hash)
			k.jumps[name] = append(k.jumps[name], "-D "+name+" "+rest)
		}
		seen[name] = true
	}
	return k
}

// cutCount splits "[1:60] -A …".
func cutCount(text string) (policy.Count, string) {
	inside, rest, ok := strings.Cut(strings.TrimPrefix(text, "["), "] ")
	packets, size, colon := strings.Cut(inside, ":")
	if !strings.HasPrefix(text, "[") || !ok || !colon {
		return policy.Count{}, text
	}
	var c policy.Count
	c.Packets, _ = strconv.ParseUint(packets, 10, 64)
	c.Bytes, _ = strconv.ParseUint(size, 10, 64)
	return c, rest
}

// cutComment returns what a line's comment says, and the hash at its end.
func cutComment(rule string) (about, hash string) {
	_, c, ok := strings.Cut(rule, "--comment ")
	if !ok {
		return "", ""
	}
	if quoted, isQuoted := strings.CutPrefix(c, `"`); isQuoted {
		c, _, _ = strings.Cut(quoted, `"`)
	} else {
		c, _, _ = strings.Cut(c, " ")
	}
	i := strings.LastIndex(c, "#")
	if i < 0 {
		return "", ""
	}
	return strings.TrimSpace(c[:i]), c[i+1:]
}
