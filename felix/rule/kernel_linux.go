// SPDX-License-Identifier: Apache-2.0

package rule

import (
	"fmt"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/heliograph-dev/heliograph/felix/desired"
)

// allBits is the mask of a mark that is compared as a whole.
const allBits = ^uint32(0)

// Kernel is the Handle of the network namespace in which it was opened.
type Kernel struct {
	nl *netlink.Handle
}

var _ Handle = (*Kernel)(nil)

// Open opens a netlink socket in the present network namespace.
func Open() (*Kernel, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	return &Kernel{nl: h}, nil
}

// Close closes the socket.
func (k *Kernel) Close() { k.nl.Close() }

// List reads the rules of both families; those of a family that is turned off are none.
func (k *Kernel) List() ([]Entry, error) {
	rules, err := k.list()
	out := make([]Entry, 0, len(rules))
	for _, r := range rules {
		out = append(out, fromRule(r))
	}
	return out, err
}

// Add adds a rule.
func (k *Kernel) Add(r desired.Rule) error {
	n, all := netlink.NewRule(), allBits
	n.Family = unix.AF_INET
	if r.Family == 6 {
		n.Family = unix.AF_INET6
	}
	n.Priority, n.Mark, n.Mask, n.Table, n.Protocol = int(r.Priority), r.Mark, &all, int(r.Table), desired.Protocol
	return k.nl.RuleAdd(n)
}

// Delete looks the rule up again: what a strange one says must be said to delete it.
func (k *Kernel) Delete(e Entry) error {
	rules, err := k.list()
	if err != nil {
		return fmt.Errorf("list rules: %w", err)
	}
	for _, r := range rules {
		if r.Protocol == desired.Protocol && fromRule(r) == e {
			return k.nl.RuleDel(&r)
		}
	}
	return syscall.ENOENT
}

// list asks for all families, since the kernel refuses to list one that it does not have.
func (k *Kernel) list() ([]netlink.Rule, error) {
	rules, err := k.nl.RuleList(unix.AF_UNSPEC)
	if err != nil {
		return nil, err
	}
	var out []netlink.Rule
	for _, r := range rules {
		if r.Family == unix.AF_INET || r.Family == unix.AF_INET6 { // and not those of multicast routing
			out = append(out, r)
		}
	}
	return out, nil
}

func fromRule(r netlink.Rule) Entry {
	e := Entry{
		Rule:     desired.Rule{Family: 4, Priority: uint32(r.Priority), Mark: r.Mark, Table: uint32(r.Table)},
		Protocol: r.Protocol,
	}
	if r.Family == unix.AF_INET6 {
		e.Rule.Family = 6
	}
	var extra []string
	add := func(has bool, format string, args ...any) {
		if has {
			extra = append(extra, fmt.Sprintf(format, args...))
		}
	}
	add(r.Invert, "not")
	add(r.Mask != nil && *r.Mask != allBits, "mask %#x", mask(r))
	add(r.Src != nil, "from %s", r.Src)
	add(r.Dst != nil, "to %s", r.Dst)
	add(r.IifName != "", "iif %s", r.IifName)
	add(r.OifName != "", "oif %s", r.OifName)
	add(r.Tos != 0, "tos %#x", r.Tos)
	add(r.TunID != 0, "tun_id %d", r.TunID)
	add(r.IPProto != 0, "ipproto %d", r.IPProto)
	add(r.Sport != nil || r.Dport != nil, "ports")
	add(r.UIDRange != nil, "uidrange")
	add(r.Goto > 0, "goto %d", r.Goto)
	add(r.Flow > 0, "realms %#x", r.Flow)
	add(r.SuppressPrefixlen >= 0, "suppress_prefixlength %d", r.SuppressPrefixlen)
	add(r.SuppressIfgroup >= 0, "suppress_ifgroup %d", r.SuppressIfgroup)
	e.Extra = strings.Join(extra, " ")
	return e
}

func mask(r netlink.Rule) uint32 {
	if r.Mask == nil {
		return 0
	}
	return *r.Mask
}
