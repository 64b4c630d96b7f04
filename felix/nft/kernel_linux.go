// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/felix/kernel"
)

const (
	// sendBuffer is enough for half a million elements. Without CAP_NET_ADMIN on the host the kernel
	// gives less, and Limit follows.
	sendBuffer = 64 << 20
	// elementsPerMessage keeps the list of elements, one netlink attribute, below 64 KiB.
	elementsPerMessage = 500
	// bytesPerElement is what an element takes in a message, of the largest kind.
	bytesPerElement = 128
)

// Kernel is the Handle of the network namespace in which it was opened.
type Kernel struct {
	conn  *nftables.Conn
	limit int
	// port is the netlink address of conn, by which Monitor, in its own goroutine, tells our changes
	// from those of others.
	port atomic.Uint32
}

var _ Handle = (*Kernel)(nil)

// Open opens a netlink socket in the present network namespace.
func Open() (*Kernel, error) {
	k := &Kernel{}
	return k, k.dial()
}

// Close closes the socket.
func (k *Kernel) Close() error { return k.conn.CloseLasting() }

func (k *Kernel) dial() error {
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(k.setUp))
	if err != nil {
		return fmt.Errorf("open netlink socket: %w", err)
	}
	k.conn = conn
	return nil
}

func (k *Kernel) setUp(c *netlink.Conn) error {
	if err := errors.Join(c.SetWriteBuffer(sendBuffer), c.SetReadBuffer(sendBuffer)); err != nil {
		return err
	}
	size, err := c.WriteBuffer()
	if err != nil {
		return err
	}
	k.limit = size / 2 / bytesPerElement // half of it is the kernel's own overhead
	k.port.Store(c.PID())
	return nil
}

// Limit is how many elements fit into the send buffer.
func (k *Kernel) Limit() int { return k.limit }

// Commit sends a transaction.
func (k *Kernel) Commit(tx Transaction) error {
	table := &nftables.Table{Name: desired.NFTTable, Family: nftables.TableFamilyINet}
	if tx.Delete {
		k.conn.DelTable(table)
		return k.flush()
	}
	if tx.Replace {
		if err := k.layOut(table); err != nil {
			return err
		}
	}
	for _, s := range setLayout() {
		set := s.set(table)
		remove, add := encode(s.name, tx.Remove[s.name]), encode(s.name, tx.Add[s.name])
		// First out, then in: a range that shrinks has an element that is in both.
		for chunk := range slices.Chunk(remove, elementsPerMessage) {
			if err := k.conn.SetDeleteElements(set, chunk); err != nil {
				return err
			}
		}
		for chunk := range slices.Chunk(add, elementsPerMessage) {
			if err := k.conn.SetAddElements(set, chunk); err != nil {
				return err
			}
		}
	}
	return k.flush()
}

// layOut adds the messages that make the table anew. Adding it before deleting it makes the deletion
// right in both cases, of a table that is there and one that is not.
func (k *Kernel) layOut(table *nftables.Table) error {
	k.conn.AddTable(table)
	k.conn.DelTable(table)
	k.conn.AddTable(table)
	for _, s := range setLayout() {
		if err := k.conn.AddSet(s.set(table), nil); err != nil {
			return fmt.Errorf("set %s: %w", s.name, err)
		}
	}
	layout := chainLayout()
	chains := make([]*nftables.Chain, len(layout))
	for i, c := range layout {
		chains[i] = &nftables.Chain{Name: c.name, Table: table, Type: c.kind, Hooknum: c.hook, Priority: c.priority}
		if c.hook != nil {
			accept := nftables.ChainPolicyAccept
			chains[i].Policy = &accept
		}
		k.conn.AddChain(chains[i])
	}
	for i, c := range layout {
		for _, r := range c.rules {
			comment := userdata.AppendString(nil, userdata.TypeComment, r.name)
			k.conn.AddRule(&nftables.Rule{Table: table, Chain: chains[i], Exprs: r.exprs, UserData: comment})
		}
	}
	return nil
}

// flush sends what has been prepared. After an error there may be answers left in the socket, which
// would be taken for those of the next transaction: hence a new one.
func (k *Kernel) flush() error {
	err := k.conn.Flush()
	if err == nil {
		return nil
	}
	return errors.Join(err, k.conn.CloseLasting(), k.dial())
}

// Read reads the whole table.
func (k *Kernel) Read() (State, error) {
	state, err := k.read()
	if err == nil || errors.Is(err, syscall.ENOENT) { // deleted while we read
		return state, nil
	}
	return State{}, errors.Join(err, k.conn.CloseLasting(), k.dial())
}

func (k *Kernel) read() (State, error) {
	tables, err := k.conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return State{}, fmt.Errorf("list tables: %w", err)
	}
	i := slices.IndexFunc(tables, func(t *nftables.Table) bool { return t.Name == desired.NFTTable })
	if i < 0 {
		return State{}, nil
	}
	want, err := wantedShape()
	if err != nil {
		return State{}, err
	}
	got, err := k.shape(tables[i])
	if err != nil {
		return State{}, err
	}
	state := State{Exists: true, Drift: firstDifference(want, got), Sets: map[string]Set{}}
	if state.Drift != "" {
		return state, nil // it will be replaced, whatever is in the sets
	}
	for _, s := range setLayout() {
		es, err := k.conn.GetSetElements(s.set(tables[i]))
		if err != nil {
			return State{}, fmt.Errorf("list elements of set %s: %w", s.name, err)
		}
		state.Sets[s.name] = decode(s.name, es)
	}
	return state, nil
}

// shape reads the table's sets, chains and rules, as lines.
func (k *Kernel) shape(table *nftables.Table) ([]string, error) {
	sets, err := k.conn.GetSets(table)
	if err != nil {
		return nil, fmt.Errorf("list sets: %w", err)
	}
	var lines []string
	for _, s := range sets {
		lines = append(lines, setLine(s.Name, s.KeyType, s.Interval, s.Concatenation))
	}
	chains, err := k.conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, fmt.Errorf("list chains: %w", err)
	}
	for _, c := range chains {
		if c.Table.Name != table.Name {
			continue
		}
		line := chainLine(c.Name, c.Type, c.Hooknum, c.Priority)
		if c.Policy != nil && *c.Policy != nftables.ChainPolicyAccept {
			line += " policy drop"
		}
		lines = append(lines, line)
	}
	rules, err := readRules()
	if err != nil {
		return nil, fmt.Errorf("list rules: %w", err)
	}
	lines = append(lines, rules...)
	slices.Sort(lines)
	return lines, nil
}

// readRules reads the table's rules, as lines. The library's GetRules cannot read all expressions that
// it writes (rt, byteorder), and we only need to compare bytes.
func readRules() ([]string, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, err
	}
	defer conn.Close() //nolint:errcheck // nothing was written
	name, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: unix.NFTA_RULE_TABLE, Data: []byte(desired.NFTTable + "\x00")}})
	if err != nil {
		return nil, err
	}
	msgs, err := conn.Execute(netlink.Message{
		Header: netlink.Header{
			Type:  unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETRULE,
			Flags: netlink.Request | netlink.Dump,
		},
		Data: append([]byte{unix.NFPROTO_INET, unix.NFNETLINK_V0, 0, 0}, name...),
	})
	if err != nil {
		return nil, err
	}
	var lines []string
	next := map[string]int{}
	for _, m := range msgs {
		line, err := parseRule(m.Data[kernel.NfgenmsgLen:], next)
		if err != nil {
			return nil, err
		}
		lines = append(lines, line)
	}
	return lines, nil
}

// parseRule makes a line of a rule. next counts the rules of each chain.
func parseRule(b []byte, next map[string]int) (string, error) {
	attrs, err := netlink.UnmarshalAttributes(b)
	if err != nil {
		return "", err
	}
	var chain, comment string
	var exprs []string
	for _, a := range attrs {
		switch a.Type &^ unix.NLA_F_NESTED {
		case unix.NFTA_RULE_CHAIN:
			chain = strings.TrimRight(string(a.Data), "\x00")
		case unix.NFTA_RULE_USERDATA:
			comment, _ = userdata.GetString(a.Data, userdata.TypeComment)
		case unix.NFTA_RULE_EXPRESSIONS:
			list, err := netlink.UnmarshalAttributes(a.Data)
			if err != nil {
				return "", err
			}
			for _, e := range list {
				text, err := exprText(e.Data)
				if err != nil {
					return "", err
				}
				exprs = append(exprs, text)
			}
		}
	}
	i := next[chain]
	next[chain]++
	return ruleLine(chain, i, comment, exprs), nil
}

// Monitor calls poke whenever somebody else has changed our table, or may have, until ctx ends.
func (k *Kernel) Monitor(ctx context.Context, poke func()) error {
	return kernel.MonitorNFTables(ctx, kernel.OfInetTable(desired.NFTTable), func(port uint32) bool { return port == k.port.Load() }, poke)
}

func (s setSpec) set(table *nftables.Table) *nftables.Set {
	return &nftables.Set{
		Table: table, Name: s.name, KeyType: s.key, Interval: isInterval(s.name), Concatenation: s.concat,
		KeyByteOrder: byteOrder(s),
	}
}

// encode makes the kernel's elements of ours. A range is two: its first address, and the one after its
// last, flagged as an end; there is none after the last address of all.
func encode(set string, es []Element) []nftables.SetElement {
	out := make([]nftables.SetElement, 0, len(es))
	for _, e := range es {
		out = append(out, nftables.SetElement{Key: []byte(e.Key)})
		if end, ok := successor([]byte(e.Last)); ok && isInterval(set) {
			out = append(out, nftables.SetElement{Key: end, IntervalEnd: true})
		}
	}
	return out
}

// decode is the reverse of encode, for elements in any order.
func decode(set string, es []nftables.SetElement) Set {
	out := make(Set, len(es))
	if !isInterval(set) {
		for _, e := range es {
			out[Element{Key: string(e.Key)}] = struct{}{}
		}
		return out
	}
	// An end and the start of the next range may be the same address: the end comes first.
	slices.SortFunc(es, func(a, b nftables.SetElement) int {
		if c := slices.Compare(a.Key, b.Key); c != 0 || a.IntervalEnd == b.IntervalEnd {
			return c
		}
		if a.IntervalEnd {
			return -1
		}
		return 1
	})
	for i, e := range es {
		if e.IntervalEnd {
			continue
		}
		last := slices.Repeat([]byte{0xff}, len(e.Key))
		if i+1 < len(es) {
			last = predecessor(es[i+1].Key)
		}
		out[Element{Key: string(e.Key), Last: string(last)}] = struct{}{}
	}
	return out
}

// successor is the address after one; false after the last, and for none.
func successor(addr []byte) ([]byte, bool) {
	b := slices.Clone(addr)
	for i := len(b) - 1; i >= 0; i-- {
		if b[i]++; b[i] != 0 {
			return b, true
		}
	}
	return nil, false
}

func predecessor(addr []byte) []byte {
	b := slices.Clone(addr)
	for i := len(b) - 1; i >= 0; i-- {
		if b[i]--; b[i] != 0xff {
			break
		}
	}
	return b
}
