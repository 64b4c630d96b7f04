// SPDX-License-Identifier: Apache-2.0

package nftpolicy

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/felix/kernel"
	"github.com/heliograph-dev/heliograph/policy"
)

// dumps is how often a dump is begun anew, because the table changed meanwhile.
const dumps = 5

// dump asks for all objects of a kind, and calls visit with the attributes of each.
func (k *Kernel) dump(kind uint16, ask func(*batch), visit func(attrs []byte)) error {
	for range dumps {
		var all [][]byte
		interrupted, err := k.dumpOnce(kind, ask, func(attrs []byte) { all = append(all, attrs) })
		if err != nil {
			return err
		}
		if interrupted {
			continue
		}
		for _, attrs := range all {
			visit(attrs)
		}
		return nil
	}
	return fmt.Errorf("the table changed during each of %d dumps: %w", dumps, unix.EINTR)
}

func (k *Kernel) dumpOnce(kind uint16, ask func(*batch), visit func(attrs []byte)) (interrupted bool, err error) {
	b := &batch{sequence: k.sequence}
	b.message(kind, unix.NLM_F_DUMP, func() { ask(b) })
	k.sequence = b.sequence
	if err := k.send(b.attributes); err != nil {
		return false, err
	}
	buffer := make([]byte, 64<<10)
	for {
		n, _, err := unix.Recvfrom(k.fd, buffer, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return false, err
		}
		for m := bytes.Clone(buffer[:n]); len(m) >= unix.NLMSG_HDRLEN; {
			length := int(binary.NativeEndian.Uint32(m))
			if length < unix.NLMSG_HDRLEN || length > len(m) {
				return false, fmt.Errorf("message of %d bytes in %d", length, len(m))
			}
			body, ours := m[unix.NLMSG_HDRLEN:length], binary.NativeEndian.Uint32(m[8:]) == k.sequence
			interrupted = interrupted || ours && binary.NativeEndian.Uint16(m[6:])&unix.NLM_F_DUMP_INTR != 0
			switch kind := binary.NativeEndian.Uint16(m[4:]); {
			case !ours: // of a turn that failed
			case kind == unix.NLMSG_DONE:
				return interrupted, nil
			case kind == unix.NLMSG_ERROR && len(body) >= 4:
				return false, syscall.Errno(-int32(binary.NativeEndian.Uint32(body)))
			case len(body) >= kernel.NfgenmsgLen:
				visit(body[kernel.NfgenmsgLen:])
			}
			m = m[min((length+3)&^3, len(m)):]
		}
	}
}

// each yields the attributes of a message, without the flags of their types.
func each(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= 4 {
			length := int(binary.NativeEndian.Uint16(b))
			if length < 4 || length > len(b) {
				return
			}
			if !yield(binary.NativeEndian.Uint16(b[2:])&^unix.NLA_F_NESTED, b[4:length]) {
				return
			}
			b = b[min((length+3)&^3, len(b)):]
		}
	}
}

// attribute returns one of them; nil if it is not there.
func attribute(b []byte, path ...uint16) []byte {
	for _, want := range path {
		var found []byte
		for kind, data := range each(b) {
			if kind == want {
				found = data
			}
		}
		b = found
	}
	return b
}

func stringOf(b []byte) string { return strings.TrimRight(string(b), "\x00") }

func u32(b []byte) uint32 {
	if len(b) != 4 {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}

// Counters returns what rules have counted, by their comments.
func (k *Kernel) Counters() (map[string]policy.Count, error) {
	out := map[string]policy.Count{}
	err := k.rules(func(_ string, attrs []byte) {
		name := commentOf(attrs)
		if name == "" {
			return
		}
		for _, e := range each(attribute(attrs, unix.NFTA_RULE_EXPRESSIONS)) {
			if data := attribute(e, unix.NFTA_EXPR_DATA); stringOf(attribute(e, unix.NFTA_EXPR_NAME)) == "counter" {
				c := out[name]
				c.Packets += u64(attribute(data, unix.NFTA_COUNTER_PACKETS))
				c.Bytes += u64(attribute(data, unix.NFTA_COUNTER_BYTES))
				out[name] = c
			}
		}
	})
	return out, err
}

func u64(b []byte) uint64 {
	if len(b) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(b)
}

func commentOf(rule []byte) string {
	data := attribute(rule, unix.NFTA_RULE_USERDATA)
	if len(data) < 2 || data[0] != 0 {
		return ""
	}
	return stringOf(data[2:])
}

func (k *Kernel) rules(visit func(chain string, attrs []byte)) error {
	ask := func(b *batch) { b.text(unix.NFTA_RULE_TABLE, desired.NFTPolicyTable) }
	err := k.dump(unix.NFT_MSG_GETRULE, ask, func(attrs []byte) {
		if stringOf(attribute(attrs, unix.NFTA_RULE_TABLE)) == desired.NFTPolicyTable {
			visit(stringOf(attribute(attrs, unix.NFTA_RULE_CHAIN)), attrs)
		}
	})
	if err != nil {
		return fmt.Errorf("list rules: %w", err)
	}
	return nil
}

// Read reads the table.
func (k *Kernel) Read(want Ruleset) (Actual, error) {
	a := Actual{Sets: map[string]map[Element]struct{}{}, Chains: map[string]bool{}}
	for _, read := range []func(Ruleset, *Actual) error{k.readChains, k.readSets, k.readRules, k.readElements} {
		err := read(want, &a)
		if errors.Is(err, syscall.ENOENT) {
			return Actual{}, nil
		}
		if err != nil {
			return Actual{}, err
		}
	}
	a.Exists = true
	return a, nil
}

func (k *Kernel) readSets(want Ruleset, a *Actual) error {
	line := func(flags, key, length uint32) string {
		return fmt.Sprintf("flags %x type %d length %d", flags, key, length)
	}
	wanted := map[string]string{}
	for _, s := range want.Sets {
		number, _ := keyType(s.Key)
		wanted[s.Name] = line(setFlags(s.Set), number, keyLength(s.Key))
	}
	ask := func(b *batch) { b.text(unix.NFTA_SET_TABLE, desired.NFTPolicyTable) }
	err := k.dump(unix.NFT_MSG_GETSET, ask, func(attrs []byte) {
		name := stringOf(attribute(attrs, unix.NFTA_SET_NAME))
		got := line(u32(attribute(attrs, unix.NFTA_SET_FLAGS)), u32(attribute(attrs, unix.NFTA_SET_KEY_TYPE)), u32(attribute(attrs, unix.NFTA_SET_KEY_LEN)))
		if w, ok := wanted[name]; ok && w != got {
			a.Odd = fmt.Sprintf("set %s: %s, want %s", name, got, w)
		}
		a.Sets[name] = nil
	})
	if err != nil {
		return fmt.Errorf("list sets: %w", err)
	}
	return nil
}

func (k *Kernel) readChains(want Ruleset, a *Actual) error {
	line := func(base bool, hook, priority, policy uint32, kind string) string {
		if !base {
			return "no hook"
		}
		return fmt.Sprintf("type %s hook %d priority %d policy %d", kind, hook, int32(priority), policy)
	}
	wanted := map[string]string{}
	for _, c := range want.Chains {
		wanted[c.Name] = line(c.Hook != NoHook, hookNumber(c.Hook), uint32(c.After), nfAccept, "filter")
	}
	err := k.dump(unix.NFT_MSG_GETCHAIN, func(*batch) {}, func(attrs []byte) {
		if stringOf(attribute(attrs, unix.NFTA_CHAIN_TABLE)) != desired.NFTPolicyTable {
			return
		}
		name, hook := stringOf(attribute(attrs, unix.NFTA_CHAIN_NAME)), attribute(attrs, unix.NFTA_CHAIN_HOOK)
		got := line(hook != nil, u32(attribute(hook, unix.NFTA_HOOK_HOOKNUM)), u32(attribute(hook, unix.NFTA_HOOK_PRIORITY)),
			u32(attribute(attrs, unix.NFTA_CHAIN_POLICY)), stringOf(attribute(attrs, unix.NFTA_CHAIN_TYPE)))
		if w, ok := wanted[name]; ok && w != got {
			a.Odd = fmt.Sprintf("chain %s: %s, want %s", name, got, w)
		}
		a.Chains[name] = true
	})
	if err != nil {
		return fmt.Errorf("list chains: %w", err)
	}
	return nil
}

// readRules finds the chains that have other rules.
func (k *Kernel) readRules(want Ruleset, a *Actual) error {
	left := map[string][]Rule{}
	for _, c := range want.Chains {
		left[c.Name] = c.Rules
	}
	err := k.rules(func(chain string, attrs []byte) {
		rules := left[chain]
		if len(rules) == 0 || !sameRule(&rules[0], attrs) {
			a.Chains[chain] = false
			return
		}
		left[chain] = rules[1:]
	})
	if err != nil {
		return err
	}
	for name, rules := range left {
		if _, ok := a.Chains[name]; ok && len(rules) > 0 {
			a.Chains[name] = false
		}
	}
	return nil
}

func (k *Kernel) readElements(want Ruleset, a *Actual) error {
	for _, s := range want.Sets {
		if _, ok := a.Sets[s.Name]; !ok || a.Odd != "" {
			continue
		}
		elements, err := k.elements(s.Set)
		if err != nil {
			return fmt.Errorf("list elements of set %s: %w", s.Name, err)
		}
		a.Sets[s.Name] = elements
	}
	return nil
}

// sameRule compares a rule with the kernel's, as bytes.
func sameRule(want *Rule, attrs []byte) bool {
	if commentOf(attrs) != want.Comment {
		return false
	}
	var b batch
	b.rule(want)
	next, stop := iter.Pull2(each(attribute(attrs, unix.NFTA_RULE_EXPRESSIONS)))
	defer stop()
	for _, ours := range each(b.attributes) {
		_, theirs, ok := next()
		name := stringOf(attribute(ours, unix.NFTA_EXPR_NAME))
		if !ok || name != stringOf(attribute(theirs, unix.NFTA_EXPR_NAME)) {
			return false
		}
		// Counters count.
		if name != "counter" && !sameData(attribute(ours, unix.NFTA_EXPR_DATA), attribute(theirs, unix.NFTA_EXPR_DATA)) {
			return false
		}
	}
	_, _, more := next()
	return !more
}

// sameData compares attributes: what we say the kernel must say, and what it says beyond that must be
// zero, for newer kernels say more.
func sameData(ours, theirs []byte) bool {
	said := map[uint16]bool{}
	for at := ours; len(at) >= 4; at = at[min((int(binary.NativeEndian.Uint16(at))+3)&^3, len(at)):] {
		nested := binary.NativeEndian.Uint16(at[2:])&unix.NLA_F_NESTED != 0
		kind, data := binary.NativeEndian.Uint16(at[2:])&^unix.NLA_F_NESTED, at[4:binary.NativeEndian.Uint16(at)]
		said[kind] = true
		their := attribute(theirs, kind)
		if nested && !sameData(data, their) || !nested && !bytes.Equal(data, their) {
			return false
		}
	}
	for kind, data := range each(theirs) {
		if !said[kind] && len(bytes.Trim(data, "\x00")) > 0 {
			return false
		}
	}
	return true
}

// boundary is an element that ends a range, or begins one.
type boundary struct {
	Element
	end bool
}

func (k *Kernel) elements(s Set) (map[Element]struct{}, error) {
	var all []boundary
	ask := func(b *batch) { b.named(unix.NFTA_SET_ELEM_LIST_TABLE, unix.NFTA_SET_ELEM_LIST_SET, s.Name) }
	err := k.dump(unix.NFT_MSG_GETSETELEM, ask, func(attrs []byte) {
		for _, a := range each(attribute(attrs, unix.NFTA_SET_ELEM_LIST_ELEMENTS)) {
			all = append(all, parseElement(a))
		}
	})
	if err != nil {
		return nil, err
	}
	if s.Interval && !tuple(s.Key) {
		return joined(all), nil
	}
	out := make(map[Element]struct{}, len(all))
	for _, e := range all {
		out[e.Element] = struct{}{}
	}
	return out, nil
}

func parseElement(a []byte) boundary {
	e := boundary{Element: Element{
		Key:  string(attribute(a, unix.NFTA_SET_ELEM_KEY, unix.NFTA_DATA_VALUE)),
		Last: string(attribute(a, elemKeyEnd, unix.NFTA_DATA_VALUE)),
	}}
	e.end = u32(attribute(a, unix.NFTA_SET_ELEM_FLAGS))&unix.NFT_SET_ELEM_INTERVAL_END != 0
	if v := attribute(a, unix.NFTA_SET_ELEM_DATA, unix.NFTA_DATA_VERDICT); v != nil {
		e.Verdict = Verdict{kindOf(u32(attribute(v, unix.NFTA_VERDICT_CODE))), stringOf(attribute(v, unix.NFTA_VERDICT_CHAIN))}
	}
	return e
}

func kindOf(code uint32) VerdictKind {
	for _, k := range []VerdictKind{Accept, Drop, Return, Jump, Goto} {
		if verdictCode(k) == code {
			return k
		}
	}
	return Continue
}

// joined makes ranges of their beginnings and ends.
func joined(all []boundary) map[Element]struct{} {
	// An end and the beginning of the next range may be the same key: the end comes first.
	slices.SortFunc(all, func(a, b boundary) int {
		if c := strings.Compare(a.Key, b.Key); c != 0 || a.end == b.end {
			return c
		}
		if a.end {
			return -1
		}
		return 1
	})
	out := make(map[Element]struct{}, len(all)/2+1)
	for i, e := range all {
		if e.end {
			continue
		}
		e.Last = strings.Repeat("\xff", len(e.Key))
		if i+1 < len(all) {
			e.Last = predecessor(all[i+1].Key)
		}
		out[e.Element] = struct{}{}
	}
	return out
}

func predecessor(key string) string {
	b := []byte(key)
	for i := len(b) - 1; i >= 0; i-- {
		if b[i]--; b[i] != 0xff {
			break
		}
	}
	return string(b)
}
