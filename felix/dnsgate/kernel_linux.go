// SPDX-License-Identifier: Apache-2.0

package dnsgate

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/google/nftables/xt"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/heliograph-dev/heliograph/felix/kernel"
)

const (
	tableName                                = "heliograph-dns"
	setDevices, setResolvers4, setResolvers6 = "pods", "resolvers-4", "resolvers-6"

	ifNameSize = 16 // IFNAMSIZ
	dnsPort    = 53
	// layout is the comment of our rules: a process that would write others makes the table anew.
	layout = "heliograph dns 1"
)

// Kernel is the Handle of the network namespace in which Open was called.
type Kernel struct {
	conn *nftables.Conn
	// compat says that the kernel has no "queue" of nftables, and takes that of xtables.
	compat bool
}

var _ Handle = (*Kernel)(nil)

// Open opens a netlink socket in the present network namespace.
func Open() (*Kernel, error) {
	k := &Kernel{}
	return k, k.dial()
}

func (k *Kernel) dial() (err error) {
	if k.conn, err = nftables.New(nftables.AsLasting()); err != nil {
		return fmt.Errorf("open netlink socket: %w", err)
	}
	return nil
}

// Close closes the socket.
func (k *Kernel) Close() error { return k.conn.CloseLasting() }

func mark() []byte { return userdata.AppendString(nil, userdata.TypeComment, layout) }

func table() *nftables.Table {
	return &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
}

func sets(t *nftables.Table) []*nftables.Set {
	return []*nftables.Set{
		{Table: t, Name: setDevices, KeyType: nftables.TypeIFName},
		{Table: t, Name: setResolvers4, KeyType: nftables.TypeIPAddr},
		{Table: t, Name: setResolvers6, KeyType: nftables.TypeIP6Addr},
	}
}

func elements(d Desired) [3][]nftables.SetElement {
	var out [3][]nftables.SetElement
	for _, device := range d.Devices {
		out[0] = append(out[0], nftables.SetElement{Key: append([]byte(device), make([]byte, ifNameSize-len(device))...)})
	}
	for _, ip := range d.Resolvers {
		i := 1
		if ip.Is6() {
			i = 2
		}
		out[i] = append(out[i], nftables.SetElement{Key: ip.AsSlice()})
	}
	return out
}

// Write implements Handle.
func (k *Kernel) Write(d Desired) error {
	err := k.layOut(d)
	if errors.Is(err, syscall.ENOENT) && !k.compat {
		k.compat = true
		err = k.layOut(d)
	}
	return err
}

// layOut makes the table anew. Adding it first makes its deletion right also where there is none.
func (k *Kernel) layOut(d Desired) error {
	t := table()
	k.conn.AddTable(t)
	k.conn.DelTable(t)
	k.conn.AddTable(t)
	all := sets(t)
	for i, content := range elements(d) {
		if err := k.conn.AddSet(all[i], content); err != nil {
			return errors.Join(err, k.again())
		}
	}
	for name, hook := range map[string]*nftables.ChainHook{"forward": nftables.ChainHookForward, "output": nftables.ChainHookOutput} {
		accept := nftables.ChainPolicyAccept
		c := k.conn.AddChain(&nftables.Chain{
			Name: name, Table: t, Type: nftables.ChainTypeFilter, Hooknum: hook,
			Priority: nftables.ChainPriorityRef(*nftables.ChainPriorityFilter - 1), Policy: &accept,
		})
		k.conn.AddRule(&nftables.Rule{Table: t, Chain: c, Exprs: k.held(unix.NFPROTO_IPV4, all[1], 12, 4), UserData: mark()})
		k.conn.AddRule(&nftables.Rule{Table: t, Chain: c, Exprs: k.held(unix.NFPROTO_IPV6, all[2], 8, 16), UserData: mark()})
	}
	return k.flush()
}

// held is the rule of a family, whose source address is at offset of its header.
func (k *Kernel) held(family byte, resolvers *nftables.Set, offset, length uint32) []expr.Any {
	const replied = 1 // IP_CT_DIR_REPLY
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}},
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Lookup{SourceRegister: 1, SetName: setDevices},
		&expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{replied}},
		&expr.Ct{Key: expr.CtKeyPROTODST, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0, dnsPort}},
		&expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length, DestRegister: 1},
		&expr.Lookup{SourceRegister: 1, SetName: resolvers.Name},
		k.queue(),
	}
}

func (k *Kernel) queue() expr.Any {
	if !k.compat {
		return &expr.Queue{Num: queueNumber, Flag: expr.QueueFlagBypass}
	}
	// struct xt_NFQ_info_v3: the queue, how many there are, NFQ_FLAG_BYPASS; padded to 8 bytes.
	info := binary.NativeEndian.AppendUint16(nil, queueNumber)
	info = append(binary.NativeEndian.AppendUint16(binary.NativeEndian.AppendUint16(info, 1), 1), 0, 0)
	return &expr.Target{Name: "NFQUEUE", Rev: 3, Info: (*xt.Unknown)(&info)}
}

// Change implements Handle.
func (k *Kernel) Change(add, remove Desired) error {
	more, less := elements(add), elements(remove)
	for i, s := range sets(table()) {
		if len(less[i]) > 0 {
			if err := k.conn.SetDeleteElements(s, less[i]); err != nil {
				return errors.Join(err, k.again())
			}
		}
		if len(more[i]) > 0 {
			if err := k.conn.SetAddElements(s, more[i]); err != nil {
				return errors.Join(err, k.again())
			}
		}
	}
	return k.flush()
}

// Delete implements Handle.
func (k *Kernel) Delete() error {
	k.conn.DelTable(table())
	if err := k.flush(); err != nil && !errors.Is(err, syscall.ENOENT) {
		return err
	}
	return nil
}

// Read implements Handle.
func (k *Kernel) Read() (Desired, bool, error) {
	d, whole, err := k.read()
	if errors.Is(err, syscall.ENOENT) {
		return Desired{}, false, nil
	}
	if err != nil {
		return Desired{}, false, errors.Join(err, k.again())
	}
	return d, whole, nil
}

func (k *Kernel) read() (d Desired, whole bool, err error) {
	rules, err := readRules()
	if err != nil || !maps.Equal(rules, map[string]int{"forward": 2, "output": 2}) {
		return d, false, err
	}
	for _, s := range sets(table()) {
		found, err := k.conn.GetSetElements(s)
		if err != nil {
			return d, false, err
		}
		for _, e := range found {
			if s.Name == setDevices {
				d.Devices = append(d.Devices, strings.TrimRight(string(e.Key), "\x00"))
			} else if ip, ok := netip.AddrFromSlice(e.Key); ok {
				d.Resolvers = append(d.Resolvers, ip)
			}
		}
	}
	slices.Sort(d.Devices)
	slices.SortFunc(d.Resolvers, netip.Addr.Compare)
	return d, true, nil
}

// readRules counts the rules of each chain, by their comments: those that are not ours under "". The library's
// GetRules cannot read all expressions that it writes (ct).
func readRules() (map[string]int, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, err
	}
	defer conn.Close() //nolint:errcheck // nothing was written
	name, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: unix.NFTA_RULE_TABLE, Data: []byte(tableName + "\x00")}})
	if err != nil {
		return nil, err
	}
	found, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETRULE, Flags: netlink.Request | netlink.Dump},
		Data:   append([]byte{unix.NFPROTO_INET, unix.NFNETLINK_V0, 0, 0}, name...),
	})
	if err != nil {
		return nil, err
	}
	rules := map[string]int{}
	for _, m := range found {
		attrs, err := netlink.UnmarshalAttributes(m.Data[kernel.NfgenmsgLen:])
		if err != nil {
			return nil, err
		}
		chain, ours := "", false
		for _, a := range attrs {
			switch a.Type {
			case unix.NFTA_RULE_CHAIN:
				chain = strings.TrimRight(string(a.Data), "\x00")
			case unix.NFTA_RULE_USERDATA:
				ours = bytes.Equal(a.Data, mark())
			}
		}
		if !ours {
			chain = ""
		}
		rules[chain]++
	}
	return rules, nil
}

// flush sends what has been prepared. After an error there may be answers left in the socket, which would be
// taken for those of the next transaction.
func (k *Kernel) flush() error {
	if err := k.conn.Flush(); err != nil {
		return errors.Join(err, k.again())
	}
	return nil
}

func (k *Kernel) again() error { return errors.Join(k.conn.CloseLasting(), k.dial()) }
