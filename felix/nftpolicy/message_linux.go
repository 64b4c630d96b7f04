// SPDX-License-Identifier: Apache-2.0

package nftpolicy

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/policy"
)

// The messages are written by hand. google/nftables, which felix/nft uses, asks for an acknowledgement of
// each: with 10,000 policies these are more than a socket takes. And it does not tell which message the
// kernel refused.

// attributes is a buffer of netlink attributes, in the byte order that nf_tables wants: big endian, but
// for the headers.
type attributes []byte

func (a *attributes) raw(kind uint16, data []byte) {
	*a = binary.NativeEndian.AppendUint16(*a, uint16(4+len(data)))
	*a = binary.NativeEndian.AppendUint16(*a, kind)
	*a = append(*a, data...)
	a.pad()
}

func (a *attributes) pad() {
	for len(*a)%4 != 0 {
		*a = append(*a, 0)
	}
}

// text is a string, which ends with a zero.
func (a *attributes) text(kind uint16, s string) {
	*a = binary.NativeEndian.AppendUint16(*a, uint16(4+len(s)+1))
	*a = binary.NativeEndian.AppendUint16(*a, kind)
	*a = append(append(*a, s...), 0)
	a.pad()
}

func (a *attributes) u32(kind uint16, v uint32) {
	*a = binary.NativeEndian.AppendUint16(*a, 8)
	*a = binary.NativeEndian.AppendUint16(*a, kind)
	*a = binary.BigEndian.AppendUint32(*a, v)
}

func (a *attributes) u64(kind uint16, v uint64) {
	*a = binary.NativeEndian.AppendUint16(*a, 12)
	*a = binary.NativeEndian.AppendUint16(*a, kind)
	*a = binary.BigEndian.AppendUint64(*a, v)
}

// nest writes an attribute that holds those that fill writes. Its length must stay below 64 KiB.
func (a *attributes) nest(kind uint16, fill func()) {
	at := len(*a)
	*a = binary.NativeEndian.AppendUint16(*a, 0)
	*a = binary.NativeEndian.AppendUint16(*a, kind|unix.NLA_F_NESTED)
	fill()
	binary.NativeEndian.PutUint16((*a)[at:], uint16(len(*a)-at))
}

// value is a NFTA_DATA_VALUE within an attribute.
func (a *attributes) value(kind uint16, data string) {
	a.nest(kind, func() { a.raw(unix.NFTA_DATA_VALUE, []byte(data)) })
}

// batch is the messages of one transaction.
type batch struct {
	attributes
	sequence uint32
	last     int // where the last message begins
}

// message writes one; its number says which operation the kernel speaks of when it refuses.
func (b *batch) message(kind uint16, flags uint16, fill func()) {
	b.begin(unix.NFNL_SUBSYS_NFTABLES<<8|kind, flags, unix.NFPROTO_INET, 0)
	fill()
	b.end()
}

func (b *batch) begin(kind, flags uint16, family byte, resource uint16) {
	b.last = len(b.attributes)
	b.sequence++
	b.attributes = binary.NativeEndian.AppendUint32(b.attributes, 0)
	b.attributes = binary.NativeEndian.AppendUint16(b.attributes, kind)
	b.attributes = binary.NativeEndian.AppendUint16(b.attributes, flags|unix.NLM_F_REQUEST)
	b.attributes = binary.NativeEndian.AppendUint32(b.attributes, b.sequence)
	b.attributes = binary.NativeEndian.AppendUint32(b.attributes, 0)
	b.attributes = append(b.attributes, family, unix.NFNETLINK_V0, byte(resource>>8), byte(resource))
}

func (b *batch) end() {
	binary.NativeEndian.PutUint32(b.attributes[b.last:], uint32(len(b.attributes)-b.last))
}

func (b *batch) table(kind, flags uint16) {
	b.message(kind, flags, func() { b.text(unix.NFTA_TABLE_NAME, desired.NFTPolicyTable) })
}

// op writes the messages of an operation.
func (b *batch) op(o *Op) error {
	switch o.Kind {
	case AddSet:
		b.message(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE|unix.NLM_F_EXCL, func() { b.set(o.Set) })
	case DeleteSet:
		b.message(unix.NFT_MSG_DELSET, 0, func() { b.named(unix.NFTA_SET_TABLE, unix.NFTA_SET_NAME, o.Set.Name) })
	case AddElements:
		b.elements(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE|unix.NLM_F_EXCL, o)
	case RemoveElements:
		b.elements(unix.NFT_MSG_DELSETELEM, 0, o)
	case AddChain:
		b.message(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE|unix.NLM_F_EXCL, func() { b.chain(o.Chain) })
	case DeleteChain:
		b.message(unix.NFT_MSG_DELCHAIN, 0, func() { b.named(unix.NFTA_CHAIN_TABLE, unix.NFTA_CHAIN_NAME, o.Chain.Name) })
	case FlushChain:
		b.message(unix.NFT_MSG_DELRULE, 0, func() { b.named(unix.NFTA_RULE_TABLE, unix.NFTA_RULE_CHAIN, o.Chain.Name) })
	case AddRule:
		b.message(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, func() {
			b.named(unix.NFTA_RULE_TABLE, unix.NFTA_RULE_CHAIN, o.Chain.Name)
			b.nest(unix.NFTA_RULE_EXPRESSIONS, func() { b.rule(o.Rule) })
			if c := o.Rule.Comment; c != "" {
				b.raw(unix.NFTA_RULE_USERDATA, userData(0, c+"\x00"))
			}
		})
	default:
		return fmt.Errorf("unknown operation %d", o.Kind)
	}
	return nil
}

func (b *batch) named(table, object uint16, name string) {
	b.text(table, desired.NFTPolicyTable)
	b.text(object, name)
}

// userData is what nft keeps beside an object: type, length, value.
func userData(kind byte, data string) []byte {
	return append([]byte{kind, byte(len(data))}, data...)
}

// hooks, and the chain type, of base chains.
func (b *batch) chain(c Chain) {
	b.named(unix.NFTA_CHAIN_TABLE, unix.NFTA_CHAIN_NAME, c.Name)
	if c.Hook == NoHook {
		return
	}
	b.nest(unix.NFTA_CHAIN_HOOK, func() {
		b.u32(unix.NFTA_HOOK_HOOKNUM, hookNumber(c.Hook))
		b.u32(unix.NFTA_HOOK_PRIORITY, uint32(c.After)) // of which filter is 0
	})
	b.u32(unix.NFTA_CHAIN_POLICY, nfAccept)
	b.text(unix.NFTA_CHAIN_TYPE, "filter")
}

func hookNumber(h Hook) uint32 {
	return [...]uint32{Input: unix.NF_INET_LOCAL_IN, Forward: unix.NF_INET_FORWARD, Output: unix.NF_INET_LOCAL_OUT}[h]
}

// keyType is how nft shows a key (its datatypes' numbers, six bits for each of a tuple), and how long its
// parts are.
func keyType(k Key) (number uint32, lengths []uint32) {
	const ipv4, ipv6, protocol, service, mark, device = 7, 8, 12, 13, 19, 41
	switch k {
	case Address4:
		return ipv4, []uint32{4}
	case Address6:
		return ipv6, []uint32{16}
	case Service4:
		return ipv4<<12 | protocol<<6 | service, []uint32{4, 1, 2}
	case Service6:
		return ipv6<<12 | protocol<<6 | service, []uint32{16, 1, 2}
	case TaggedAddress4, TaggedAddress6, TaggedService4, TaggedService6:
		// nft shows a tag as two marks: it has no type for a number that means nothing to others.
		rest, lengths := keyType(k - TaggedAddress4)
		return mark<<(6*len(lengths)+6) | mark<<(6*len(lengths)) | rest, append([]uint32{4, 4}, lengths...)
	case Port:
		return service, []uint32{2}
	case ProtocolNumber:
		return protocol, []uint32{1}
	case DevicePair:
		return device<<6 | device, []uint32{16, 16}
	}
	return device, []uint32{16}
}

func tuple(k Key) bool { _, lengths := keyType(k); return len(lengths) > 1 }

// keyLength is that of the elements: the parts of tuples are padded to registers.
func keyLength(k Key) uint32 {
	_, lengths := keyType(k)
	if len(lengths) == 1 {
		return lengths[0]
	}
	var sum uint32
	for _, l := range lengths {
		sum += (l + 3) / 4 * 4
	}
	return sum
}

const setConcat = 0x80 // NFT_SET_CONCAT, which x/sys/unix does not have

func setFlags(s Set) uint32 {
	var flags uint32
	if s.Interval {
		flags |= unix.NFT_SET_INTERVAL
	}
	if s.Map {
		flags |= unix.NFT_SET_MAP
	}
	if s.Interval && tuple(s.Key) {
		flags |= setConcat
	}
	return flags
}

func (b *batch) set(s Set) {
	number, lengths := keyType(s.Key)
	b.named(unix.NFTA_SET_TABLE, unix.NFTA_SET_NAME, s.Name)
	b.u32(unix.NFTA_SET_ID, b.sequence)
	b.u32(unix.NFTA_SET_FLAGS, setFlags(s))
	b.u32(unix.NFTA_SET_KEY_TYPE, number)
	b.u32(unix.NFTA_SET_KEY_LEN, keyLength(s.Key))
	if s.Map {
		b.u32(unix.NFTA_SET_DATA_TYPE, unix.NFT_DATA_VERDICT)
		b.u32(unix.NFTA_SET_DATA_LEN, 0)
	}
	if tuple(s.Key) && s.Interval {
		const descConcat = 2 // NFTA_SET_DESC_CONCAT
		b.nest(unix.NFTA_SET_DESC, func() {
			b.nest(descConcat, func() {
				for _, l := range lengths {
					b.nest(unix.NFTA_LIST_ELEM, func() { b.u32(1, l) }) // NFTA_SET_FIELD_LEN
				}
			})
		})
	}
	// In which byte order nft shows keys: names in the host's.
	order := uint32(2)
	if s.Key == Device {
		order = 1
	}
	b.raw(unix.NFTA_SET_USERDATA, userData(0, string(binary.NativeEndian.AppendUint32(nil, order))))
}

// elementsLimit keeps a list of elements, one attribute, below 64 KiB: the largest is 132 bytes.
const elementsLimit = 65535 - 256

func (b *batch) elements(kind, flags uint16, o *Op) {
	for i := 0; i < len(o.Elements); {
		b.message(kind, flags, func() {
			b.named(unix.NFTA_SET_ELEM_LIST_TABLE, unix.NFTA_SET_ELEM_LIST_SET, o.Set.Name)
			b.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS, func() {
				for from := len(b.attributes); i < len(o.Elements) && len(b.attributes)-from < elementsLimit; i++ {
					b.element(o.Set, &o.Elements[i], kind == unix.NFT_MSG_NEWSETELEM)
				}
			})
		})
	}
}

const elemKeyEnd = 10 // NFTA_SET_ELEM_KEY_END

// element writes an element. A range of single keys is two: its first key, and the one after its last,
// flagged as an end; none after the last key of all.
func (b *batch) element(s Set, e *Element, add bool) {
	b.nest(unix.NFTA_LIST_ELEM, func() {
		b.value(unix.NFTA_SET_ELEM_KEY, e.Key)
		if s.Interval && tuple(s.Key) {
			b.value(elemKeyEnd, e.Last)
		}
		if s.Map && add {
			b.nest(unix.NFTA_SET_ELEM_DATA, func() { b.verdict(e.Verdict) })
		}
	})
	if !s.Interval || tuple(s.Key) {
		return
	}
	if end, ok := successor(e.Last); ok {
		b.nest(unix.NFTA_LIST_ELEM, func() {
			b.value(unix.NFTA_SET_ELEM_KEY, end)
			b.u32(unix.NFTA_SET_ELEM_FLAGS, unix.NFT_SET_ELEM_INTERVAL_END)
		})
	}
}

// successor is the key after one; false after the last.
func successor(key string) (string, bool) {
	b := []byte(key)
	for i := len(b) - 1; i >= 0; i-- {
		if b[i]++; b[i] != 0 {
			return string(b), true
		}
	}
	return "", false
}

func (b *batch) verdict(v Verdict) {
	b.nest(unix.NFTA_DATA_VERDICT, func() {
		b.u32(unix.NFTA_VERDICT_CODE, verdictCode(v.Kind))
		if v.Chain != "" {
			b.text(unix.NFTA_VERDICT_CHAIN, v.Chain)
		}
	})
}

// What x/sys/unix does not have.
const (
	nfDrop   = 0 // NF_DROP
	nfAccept = 1
)

func verdictCode(k VerdictKind) uint32 {
	code := [...]int32{
		Accept: nfAccept, Drop: nfDrop, Return: unix.NFT_RETURN, Jump: unix.NFT_JUMP, Goto: unix.NFT_GOTO,
	}[k]
	return uint32(code)
}

// logRate and logBurst bound what one rule logs, in packets and packets per second.
const (
	logRate  = 10
	logBurst = 20
)

// rule writes a rule's expressions: conditions, then counter, limit, log and verdict.
func (b *batch) rule(r *Rule) {
	for i := range r.When {
		b.condition(&r.When[i])
	}
	if r.Count {
		b.expression("counter", func() {
			b.u64(unix.NFTA_COUNTER_BYTES, 0)
			b.u64(unix.NFTA_COUNTER_PACKETS, 0)
		})
	}
	if r.Log != "" {
		b.expression("limit", func() {
			b.u64(unix.NFTA_LIMIT_RATE, logRate)
			b.u64(unix.NFTA_LIMIT_UNIT, 1)
			b.u32(unix.NFTA_LIMIT_BURST, logBurst)
			b.u32(unix.NFTA_LIMIT_TYPE, unix.NFT_LIMIT_PKTS)
		})
		b.expression("log", func() {
			b.raw(unix.NFTA_LOG_GROUP, binary.BigEndian.AppendUint16(nil, policy.LogGroup))
			b.text(unix.NFTA_LOG_PREFIX, r.Log)
		})
	}
	if r.Verdict.Kind != Continue {
		b.expression("immediate", func() {
			b.u32(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_VERDICT)
			b.nest(unix.NFTA_IMMEDIATE_DATA, func() { b.verdict(r.Verdict) })
		})
	}
}

func (b *batch) expression(name string, fill func()) {
	b.nest(unix.NFTA_LIST_ELEM, func() {
		b.text(unix.NFTA_EXPR_NAME, name)
		b.nest(unix.NFTA_EXPR_DATA, fill)
	})
}
