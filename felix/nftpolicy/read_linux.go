// SPDX-License-Identifier: Apache-2.0

package nftpolicy

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/heliograph-dev/heliograph/felix/desired"
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
			case len(body) >= nfgenmsgLen:
				visit(body[nfgenmsgLen:])
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

// Compare reads the table, and describes the first thing that is not as it should be.
func (k *Kernel) Compare(want Ruleset) (string, error) {
	for _, compare := range []func(Ruleset) (string, error){k.compareSets, k.compareChains, k.compareRules, k.compareElements} {
		drift, err := compare(want)
		if errors.Is(err, syscall.ENOENT) {
			return "there is no table, or not all of it", nil
		}
		if drift != "" || err != nil {
			return drift, err
		}
	}
	return "", nil
}

// difference describes the first line that only one of two lists has.
func difference(want, got []string) string {
	slices.Sort(want)
	slices.Sort(got)
	for i := range max(len(want), len(got)) {
		switch {
		case i >= len(got) || i < len(want) && want[i] < got[i]:
			return "missing or changed: " + want[i]
		case i >= len(want) || got[i] < want[i]:
			return "foreign or changed: " + got[i]
		}
	}
	return ""
}

func (k *Kernel) compareSets(want Ruleset) (string, error) {
	line := func(name string, flags, key, length uint32) string {
		return fmt.Sprintf("set %s flags %x type %d length %d", name, flags, key, length)
	}
	var wanted, got []string
	for _, s := range want.Sets {
		number, _ := keyType(s.Key)
		wanted = append(wanted, line(s.Name, setFlags(s.Set), number, keyLength(s.Key)))
	}
	ask := func(b *batch) { b.text(unix.NFTA_SET_TABLE, desired.NFTPolicyTable) }
	err := k.dump(unix.NFT_MSG_GETSET, ask, func(a []byte) {
		got = append(got, line(stringOf(attribute(a, unix.NFTA_SET_NAME)), u32(attribute(a, unix.NFTA_SET_FLAGS)),
			u32(attribute(a, unix.NFTA_SET_KEY_TYPE)), u32(attribute(a, unix.NFTA_SET_KEY_LEN))))
	})
	if err != nil {
		return "", fmt.Errorf("list sets: %w", err)
	}
	return difference(wanted, got), nil
}

func (k *Kernel) compareChains(want Ruleset) (string, error) {
	line := func(name string, base bool, hook, priority, policy uint32, kind string) string {
		if !base {
			return "chain " + name
		}
		return fmt.Sprintf("chain %s type %s hook %d priority %d policy %d", name, kind, hook, int32(priority), policy)
	}
	var wanted, got []string
	for _, c := range want.Chains {
		wanted = append(wanted, line(c.Name, c.Hook != NoHook, hookNumber(c.Hook), uint32(c.After), nfAccept, "filter"))
	}
	err := k.dump(unix.NFT_MSG_GETCHAIN, func(*batch) {}, func(a []byte) {
		if stringOf(attribute(a, unix.NFTA_CHAIN_TABLE)) != desired.NFTPolicyTable {
			return
		}
		hook := attribute(a, unix.NFTA_CHAIN_HOOK)
		got = append(got, line(stringOf(attribute(a, unix.NFTA_CHAIN_NAME)), hook != nil, u32(attribute(hook, unix.NFTA_HOOK_HOOKNUM)),
			u32(attribute(hook, unix.NFTA_HOOK_PRIORITY)), u32(attribute(a, unix.NFTA_CHAIN_POLICY)), stringOf(attribute(a, unix.NFTA_CHAIN_TYPE))))
	})
	if err != nil {
		return "", fmt.Errorf("list chains: %w", err)
	}
	return difference(wanted, got), nil
}

func (k *Kernel) compareRules(want Ruleset) (string, error) {
	wanted := map[string][]Rule{}
	for _, c := range want.Chains {
		wanted[c.Name] = c.Rules
	}
	var drift string
	err := k.rules(func(chain string, attrs []byte) {
		rules := wanted[chain]
		switch {
		case drift != "":
		case len(rules) == 0:
			drift = fmt.Sprintf("foreign rule in chain %s: %q", chain, commentOf(attrs))
		case !sameRule(&rules[0], attrs):
			drift = fmt.Sprintf("changed rule in chain %s: %q", chain, commentOf(attrs))
		default:
			wanted[chain] = rules[1:]
		}
	})
	if err != nil || drift != "" {
		return drift, err
	}
	for _, name := range slices.Sorted(maps.Keys(wanted)) {
		if rules := wanted[name]; len(rules) > 0 {
			return fmt.Sprintf("missing rule in chain %s: %q", name, rules[0].Comment), nil
		}
	}
	return "", nil
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

func (k *Kernel) compareElements(want Ruleset) (string, error) {
	for _, s := range want.Sets {
		got, err := k.elements(s.Set)
		if err != nil {
			return "", fmt.Errorf("list elements of set %s: %w", s.Name, err)
		}
		for e := range s.Elements {
			if _, ok := got[e]; !ok {
				return fmt.Sprintf("missing or changed element %x in set %s", e.Key, s.Name), nil
			}
			delete(got, e)
		}
		for e := range got {
			return fmt.Sprintf("foreign element %x in set %s", e.Key, s.Name), nil
		}
	}
	return "", nil
}

// end is an element that ends a range, or begins one.
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
