// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/heliograph-dev/heliograph/policy"
)

// From linux/netfilter/ipset/ip_set.h.
const (
	subsystem = 6 // NFNL_SUBSYS_IPSET

	cmdCreate  = 2
	cmdDestroy = 3
	cmdList    = 7
	cmdAdd     = 9
	cmdDel     = 10

	attrProtocol = 1
	attrSetName  = 2
	attrTypeName = 3
	attrRevision = 4
	attrFamily   = 5
	attrData     = 7
	attrADT      = 8
	attrLineNo   = 9

	dataIP      = 1
	dataCIDR    = 2 + 1
	dataPort    = 4
	dataProto   = 7
	dataMaxElem = 19

	protocolVersion = 6
	// errors of its own begin here
	ipsetErrors = 4096
	ipsetBusy   = ipsetErrors + 4
)

// maxMembers is how many members a set may have. It costs nothing before they are there.
const maxMembers = 1 << 22

// typeOf is a set's type and the oldest revision that knows all protocols. hash:net,port also holds what
// hash:ip,port would, by the same one lookup.
func typeOf(kind policy.SetKind) (name string, revision uint8) {
	if kind == policy.AddressPortSet {
		return "hash:net,port", 1
	}
	return "hash:net", 0
}

// ipset is a netlink socket.
type ipset struct{ conn *netlink.Conn }

func openIPSet() (*ipset, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	return &ipset{c}, nil
}

// Close closes the socket.
func (s *ipset) Close() error { return s.conn.Close() }

// execute sends a command. fill adds the attributes.
func (s *ipset) execute(cmd int, flags netlink.HeaderFlags, fill func(*netlink.AttributeEncoder)) ([]netlink.Message, error) {
	e := netlink.NewAttributeEncoder()
	e.ByteOrder = binary.BigEndian
	e.Uint8(attrProtocol, protocolVersion)
	fill(e)
	attrs, err := e.Encode()
	if err != nil {
		return nil, err
	}
	header := []byte{unix.AF_INET, 0, 0, 0} // nfgenmsg
	m, err := s.conn.Execute(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(subsystem<<8 | cmd), Flags: netlink.Request | flags},
		Data:   append(header, attrs...),
	})
	return m, ownError(err)
}

// ownError turns ipset's errors, which are no errno, into something to read and to compare.
func ownError(err error) error {
	var errno syscall.Errno
	if !errors.As(err, &errno) || errno < ipsetErrors {
		return err
	}
	if errno == ipsetBusy {
		return fmt.Errorf("ipset error %d: %w", int(errno), syscall.EBUSY)
	}
	return fmt.Errorf("ipset error %d", int(errno))
}

// CreateSet implements Handle.
func (s *ipset) CreateSet(name string, kind policy.SetKind, f policy.Family) error {
	typeName, revision := typeOf(kind)
	_, err := s.execute(cmdCreate, netlink.Acknowledge|netlink.Excl, func(e *netlink.AttributeEncoder) {
		e.String(attrSetName, name)
		e.String(attrTypeName, typeName)
		e.Uint8(attrRevision, revision)
		e.Uint8(attrFamily, map[policy.Family]uint8{policy.IPv4: unix.AF_INET, policy.IPv6: unix.AF_INET6}[f])
		e.Nested(attrData, func(e *netlink.AttributeEncoder) error {
			e.Uint32(dataMaxElem|unix.NLA_F_NET_BYTEORDER, maxMembers)
			return nil
		})
	})
	return err
}

// DestroySet implements Handle.
func (s *ipset) DestroySet(name string) error {
	_, err := s.execute(cmdDestroy, netlink.Acknowledge, func(e *netlink.AttributeEncoder) { e.String(attrSetName, name) })
	return err
}

// AddMembers implements Handle.
func (s *ipset) AddMembers(name string, members []policy.Member) error {
	return s.members(cmdAdd, name, members)
}

// RemoveMembers implements Handle.
func (s *ipset) RemoveMembers(name string, members []policy.Member) error {
	return s.members(cmdDel, name, members)
}

// members sends as many members as fit into one message, which an attribute's 16-bit length bounds.
func (s *ipset) members(cmd int, name string, members []policy.Member) error {
	const most = 1000
	for len(members) > 0 {
		part := members[:min(most, len(members))]
		members = members[len(part):]
		_, err := s.execute(cmd, netlink.Acknowledge, func(e *netlink.AttributeEncoder) {
			e.String(attrSetName, name)
			e.Uint32(attrLineNo, 0)
			e.Nested(attrADT, func(e *netlink.AttributeEncoder) error {
				for _, m := range part {
					e.Nested(attrData, func(e *netlink.AttributeEncoder) error { return encodeMember(e, m) })
				}
				return nil
			})
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func encodeMember(e *netlink.AttributeEncoder, m policy.Member) error {
	addr := m.Prefix.Addr()
	e.Nested(dataIP, func(e *netlink.AttributeEncoder) error {
		typ := uint16(1) // IPv4
		if addr.Is6() {
			typ = 2
		}
		e.Bytes(typ|unix.NLA_F_NET_BYTEORDER, addr.AsSlice())
		return nil
	})
	e.Uint8(dataCIDR, uint8(m.Prefix.Bits())) //nolint:gosec // at most 128
	if m.Protocol != policy.AnyProtocol {
		e.Uint16(dataPort|unix.NLA_F_NET_BYTEORDER, m.Port)
		e.Uint8(dataProto, uint8(m.Protocol))
	}
	return nil
}

// ListSets implements Handle.
func (s *ipset) ListSets(prefix string) (map[string]Set, error) {
	const attempts = 5
	for range attempts {
		messages, err := s.execute(cmdList, netlink.Acknowledge|netlink.Dump, func(*netlink.AttributeEncoder) {})
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out := map[string]Set{}
		for _, m := range messages {
			if err := decodeSet(m, prefix, out); err != nil {
				return nil, err
			}
		}
		return out, nil
	}
	return nil, fmt.Errorf("ipsets changed during each of %d reads: %w", attempts, unix.EAGAIN)
}

// decodeSet reads a message of a dump: a set, or more members of the last one.
func decodeSet(m netlink.Message, prefix string, out map[string]Set) error {
	const header = 4
	if len(m.Data) < header {
		return errors.New("short message of ipset")
	}
	d, err := netlink.NewAttributeDecoder(m.Data[header:])
	if err != nil {
		return err
	}
	d.ByteOrder = binary.BigEndian
	var name string
	set := Set{Members: map[policy.Member]struct{}{}}
	for d.Next() {
		switch d.Type() {
		case attrSetName:
			name = d.String()
		case attrTypeName:
			if d.String() == "hash:net,port" {
				set.Kind = policy.AddressPortSet
			}
		case attrFamily:
			set.Family = map[uint8]policy.Family{unix.AF_INET: policy.IPv4, unix.AF_INET6: policy.IPv6}[d.Uint8()]
		case attrADT:
			d.Nested(func(d *netlink.AttributeDecoder) error { return decodeMembers(d, set.Members) })
		}
	}
	if err := d.Err(); err != nil {
		return fmt.Errorf("decode ipset: %w", err)
	}
	if !strings.HasPrefix(name, prefix) {
		return nil
	}
	if old, more := out[name]; more {
		for e := range set.Members {
			old.Members[e] = struct{}{}
		}
		return nil
	}
	out[name] = set
	return nil
}

func decodeMembers(d *netlink.AttributeDecoder, into map[policy.Member]struct{}) error {
	for d.Next() {
		d.Nested(func(d *netlink.AttributeDecoder) error {
			var addr netip.Addr
			var m policy.Member
			bits := -1
			for d.Next() {
				switch d.Type() {
				case dataIP:
					d.Nested(func(d *netlink.AttributeDecoder) error {
						for d.Next() {
							addr, _ = netip.AddrFromSlice(d.Bytes())
						}
						return nil
					})
				case dataCIDR:
					bits = int(d.Uint8())
				case dataPort:
					m.Port = d.Uint16()
				case dataProto:
					m.Protocol = policy.Protocol(d.Uint8())
				}
			}
			if bits < 0 {
				bits = addr.BitLen()
			}
			m.Prefix = netip.PrefixFrom(addr, bits)
			into[m] = struct{}{}
			return nil
		})
	}
	return nil
}
