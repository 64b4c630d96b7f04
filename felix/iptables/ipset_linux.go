// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/heliograph-dev/heliograph/felix/kernel"
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

	netOrder = unix.NLA_F_NET_BYTEORDER

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
type ipset struct {
	conn  *kernel.Conn
	batch kernel.Batch
}

func openIPSet() (*ipset, error) {
	c, err := kernel.DialNetfilter()
	if err != nil {
		return nil, err
	}
	return &ipset{conn: c}, nil
}

// Close closes the socket.
func (s *ipset) Close() error { return s.conn.Close() }

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

// ChangeSets implements Handle. The kernel finds a set by going through all of them, so with 10,000 a step
// costs a tenth of a millisecond of its time; not to wait for each answer saves as much again.
func (s *ipset) ChangeSets(ctx context.Context, steps []SetStep) []error {
	const enough = 1 << 20
	errs := make([]error, len(steps))
	failed := false
	var of []int // whose step each message is
	for i, step := range steps {
		for range s.encode(step) {
			of = append(of, i)
		}
		if i+1 < len(steps) && s.batch.Size() < enough {
			continue
		}
		for m, err := range s.conn.Execute(ctx, &s.batch) {
			if err != nil && errs[of[m]] == nil {
				errs[of[m]], failed = ownError(err), true
			}
		}
		s.batch.Reset()
		of = of[:0]
	}
	if !failed {
		return nil
	}
	return errs
}

// encode appends the messages of a step, and returns how many they are: as many members go into one as its
// attributes' 16-bit lengths let.
func (s *ipset) encode(step SetStep) int {
	switch step.Do {
	case CreateSet:
		s.create(step)
		return 1
	case DestroySet:
		s.begin(cmdDestroy, 0, step.Name)
		return 1
	}
	cmd := uint16(cmdAdd)
	if step.Do == RemoveMembers {
		cmd = cmdDel
	}
	const most = 1000
	n := 0
	for part := range slices.Chunk(step.Members, most) {
		s.members(cmd, step.Name, part)
		n++
	}
	return n
}

// begin appends a message about a set, to which attributes may be added.
func (s *ipset) begin(cmd, flags uint16, name string) {
	s.batch.Begin(subsystem<<8|cmd, flags)
	s.batch.Raw(unix.AF_INET, 0, 0, 0) // nfgenmsg
	s.batch.AttrUint8(attrProtocol, protocolVersion)
	if name != "" {
		s.batch.Attr(attrSetName, append([]byte(name), 0))
	}
}

func (s *ipset) create(step SetStep) {
	typeName, revision := typeOf(step.Kind)
	s.begin(cmdCreate, unix.NLM_F_EXCL, step.Name)
	s.batch.Attr(attrTypeName, append([]byte(typeName), 0))
	s.batch.AttrUint8(attrRevision, revision)
	s.batch.AttrUint8(attrFamily, map[policy.Family]uint8{policy.IPv4: unix.AF_INET, policy.IPv6: unix.AF_INET6}[step.Family])
	s.batch.Nest(attrData, func() {
		s.batch.Attr(dataMaxElem|netOrder, binary.BigEndian.AppendUint32(nil, maxMembers))
	})
}

func (s *ipset) members(cmd uint16, name string, members []policy.Member) {
	s.begin(cmd, 0, name)
	s.batch.Attr(attrLineNo, make([]byte, 4))
	s.batch.Nest(attrADT, func() {
		for _, m := range members {
			s.batch.Nest(attrData, func() { s.member(m) })
		}
	})
}

func (s *ipset) member(m policy.Member) {
	addr := m.Prefix.Addr()
	s.batch.Nest(dataIP, func() {
		typ := uint16(1) // IPv4
		if addr.Is6() {
			typ = 2
		}
		s.batch.AttrAddr(typ|netOrder, addr)
	})
	s.batch.AttrUint8(dataCIDR, uint8(m.Prefix.Bits())) //nolint:gosec // at most 128
	if m.Protocol != policy.AnyProtocol {
		s.batch.Attr(dataPort|netOrder, binary.BigEndian.AppendUint16(nil, m.Port))
		s.batch.AttrUint8(dataProto, uint8(m.Protocol))
	}
}

// ListSets implements Handle.
func (s *ipset) ListSets(prefix string) (map[string]Set, error) {
	const attempts = 5
	for range attempts {
		defer s.batch.Reset()
		s.batch.Reset()
		s.begin(cmdList, 0, "")
		dump, err := s.conn.Dump(context.Background(), &s.batch, nil)
		if errors.Is(err, unix.EAGAIN) {
			continue
		}
		if err != nil {
			return nil, ownError(err)
		}
		out := map[string]Set{}
		for m := range kernel.Messages(dump) {
			decodeSet(m, prefix, out)
		}
		return out, nil
	}
	return nil, fmt.Errorf("ipsets changed during each of %d reads: %w", attempts, unix.EAGAIN)
}

// decodeSet reads a message of a dump: a set, or more members of the last one.
func decodeSet(m kernel.Message, prefix string, out map[string]Set) {
	if m.Type>>8 != subsystem || len(m.Body) < kernel.NfgenmsgLen {
		return // the end of the dump
	}
	var name string
	set := Set{Members: map[policy.Member]struct{}{}}
	for typ, v := range kernel.Attributes(m.Body[kernel.NfgenmsgLen:]) {
		switch typ {
		case attrSetName:
			name = kernel.String(v)
			if old, more := out[name]; more {
				set.Members = old.Members
			}
		case attrTypeName:
			if kernel.String(v) == "hash:net,port" {
				set.Kind = policy.AddressPortSet
			}
		case attrFamily:
			set.Family = map[byte]policy.Family{unix.AF_INET: policy.IPv4, unix.AF_INET6: policy.IPv6}[v[0]]
		case attrADT:
			for _, member := range kernel.Attributes(v) {
				set.Members[decodeMember(member)] = struct{}{}
			}
		}
	}
	if _, more := out[name]; !more && strings.HasPrefix(name, prefix) {
		out[name] = set
	}
}

func decodeMember(data []byte) policy.Member {
	var addr netip.Addr
	var m policy.Member
	bits := -1
	for typ, v := range kernel.Attributes(data) {
		switch {
		case typ == dataIP:
			for _, ip := range kernel.Attributes(v) {
				addr = kernel.Addr(ip)
			}
		case typ == dataCIDR && len(v) == 1:
			bits = int(v[0])
		case typ == dataPort && len(v) == 2:
			m.Port = binary.BigEndian.Uint16(v)
		case typ == dataProto && len(v) == 1:
			m.Protocol = policy.Protocol(v[0])
		}
	}
	if bits < 0 {
		bits = addr.BitLen()
	}
	m.Prefix = netip.PrefixFrom(addr, bits)
	return m
}
