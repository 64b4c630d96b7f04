// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// The shape of a table is a text of one line per set, chain and rule. The kernel's and ours are equal
// if nobody has changed anything. Of an expression only the attributes that we set are in it: newer
// kernels report more, and counters count.
var significant = map[string][]uint16{
	"meta":      {unix.NFTA_META_DREG, unix.NFTA_META_KEY},
	"cmp":       {unix.NFTA_CMP_SREG, unix.NFTA_CMP_OP, unix.NFTA_CMP_DATA},
	"lookup":    {unix.NFTA_LOOKUP_SET, unix.NFTA_LOOKUP_SREG, unix.NFTA_LOOKUP_FLAGS},
	"payload":   {unix.NFTA_PAYLOAD_DREG, unix.NFTA_PAYLOAD_BASE, unix.NFTA_PAYLOAD_OFFSET, unix.NFTA_PAYLOAD_LEN},
	"bitwise":   {unix.NFTA_BITWISE_SREG, unix.NFTA_BITWISE_DREG, unix.NFTA_BITWISE_LEN, unix.NFTA_BITWISE_MASK, unix.NFTA_BITWISE_XOR},
	"byteorder": {unix.NFTA_BYTEORDER_SREG, unix.NFTA_BYTEORDER_DREG, unix.NFTA_BYTEORDER_OP, unix.NFTA_BYTEORDER_LEN, unix.NFTA_BYTEORDER_SIZE},
	"exthdr":    {unix.NFTA_EXTHDR_SREG, unix.NFTA_EXTHDR_TYPE, unix.NFTA_EXTHDR_OFFSET, unix.NFTA_EXTHDR_LEN, unix.NFTA_EXTHDR_OP},
	"rt":        {unix.NFTA_RT_DREG, unix.NFTA_RT_KEY},
	"masq":      {unix.NFTA_MASQ_FLAGS},
	"immediate": {unix.NFTA_IMMEDIATE_DREG, unix.NFTA_IMMEDIATE_DATA},
	"counter":   {},
}

// wantedShape is the shape of the layout.
func wantedShape() ([]string, error) {
	var lines []string
	for _, s := range setLayout() {
		lines = append(lines, setLine(s.name, s.key, isInterval(s.name), s.concat))
	}
	for _, c := range chainLayout() {
		lines = append(lines, chainLine(c.name, c.kind, c.hook, c.priority))
		for i, r := range c.rules {
			line, err := wantedRule(c.name, i, r)
			if err != nil {
				return nil, err
			}
			lines = append(lines, line)
		}
	}
	slices.Sort(lines)
	return lines, nil
}

func wantedRule(chain string, i int, r rule) (string, error) {
	var exprs []string
	for _, e := range r.exprs {
		b, err := expr.Marshal(unix.NFPROTO_INET, e)
		if err != nil {
			return "", fmt.Errorf("marshal rule %s/%s: %w", chain, r.name, err)
		}
		text, err := exprText(b)
		if err != nil {
			return "", fmt.Errorf("marshal rule %s/%s: %w", chain, r.name, err)
		}
		exprs = append(exprs, text)
	}
	return ruleLine(chain, i, r.name, exprs), nil
}

func setLine(name string, key nftables.SetDatatype, interval, concat bool) string {
	return fmt.Sprintf("set %s type %s length %d interval %v concatenation %v", name, key.Name, key.Bytes, interval, concat)
}

func chainLine(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority *nftables.ChainPriority) string {
	if hook == nil || priority == nil {
		return "chain " + name
	}
	return fmt.Sprintf("chain %s type %s hook %d priority %d", name, kind, *hook, *priority)
}

func ruleLine(chain string, i int, name string, exprs []string) string {
	return fmt.Sprintf("rule %s %02d %s: %s", chain, i, name, strings.Join(exprs, "; "))
}

// exprText is the text of an expression, from its netlink attributes: the name, and nested data.
func exprText(b []byte) (string, error) {
	attrs, err := netlink.UnmarshalAttributes(b)
	if err != nil {
		return "", err
	}
	var name string
	data := map[uint16][]byte{}
	for _, a := range attrs {
		switch a.Type &^ unix.NLA_F_NESTED {
		case unix.NFTA_EXPR_NAME:
			name = strings.TrimRight(string(a.Data), "\x00")
		case unix.NFTA_EXPR_DATA:
			nested, err := netlink.UnmarshalAttributes(a.Data)
			if err != nil {
				return "", err
			}
			for _, n := range nested {
				data[n.Type&^unix.NLA_F_NESTED] = n.Data
			}
		}
	}
	known, ok := significant[name]
	if !ok { // nothing that we use: any text will do that ours cannot have
		return fmt.Sprintf("%s %x", name, slices.Sorted(maps.Keys(data))), nil
	}
	text := name
	for _, t := range known {
		// Absent flags are flags of zero.
		if v := strings.TrimRight(string(data[t]), "\x00"); v != "" {
			text += fmt.Sprintf(" %d=%x", t, canonical(data[t]))
		}
	}
	return text, nil
}

// canonical drops the nesting flag from an attribute inside of data, where the kernel may set it and
// the library does not, or the reverse.
func canonical(data []byte) []byte {
	attrs, err := netlink.UnmarshalAttributes(data)
	if err != nil || len(attrs) != 1 {
		return data
	}
	return append([]byte{byte(attrs[0].Type)}, canonical(attrs[0].Data)...)
}

// firstDifference describes where the kernel's shape departs from ours; empty if it does not.
func firstDifference(want, got []string) string {
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
