// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/heliograph-dev/heliograph/felix/kernel"
)

const (
	rtmsgLen     = 12     // struct rtmsg
	rtnexthopLen = 8      // struct rtnexthop
	nhmsgLen     = 8      // struct nhmsg
	rtaNexthopID = 30     // RTA_NH_ID
	rtaxMTU      = 2      // RTAX_MTU
	fibMatch     = 0x2000 // RTM_F_FIB_MATCH: answer with the entry of the table, not with the way
	lookUpTable  = 0x1000 // RTM_F_LOOKUP_TABLE: and with the true number of the table
)

// Explain asks the kernel of the present network namespace about an address.
func Explain(addr netip.Addr) (Route, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return Route{}, fmt.Errorf("open netlink socket: %w", err)
	}
	defer h.Close()
	r := reader{nl: h}
	route, err := r.route(addr.Unmap(), true)
	if err != nil {
		return Route{}, fmt.Errorf("explain %s: %w", addr, err)
	}
	return route, nil
}

// reader reads the kernel.
type reader struct {
	nl *netlink.Handle
}

// route follows an address; within a tunnel's device once more, to the tunnel's remote end.
func (r reader) route(addr netip.Addr, tunnels bool) (Route, error) {
	out := Route{Address: addr}
	found, refused, err := r.lookUp(addr)
	if err != nil {
		return out, err
	}
	if refused != nil {
		out.Error = refused.Error()
	}
	if found == nil {
		return out, nil
	}
	out.Match = &found.match
	if found.match.Type != TypeUnicast {
		return out, nil
	}
	ways := found.ways
	if found.match.Nexthop != 0 {
		if ways, err = r.object(found.match.Nexthop); err != nil {
			return out, err
		}
	}
	for _, w := range ways {
		hop, err := r.hop(addr, w, tunnels)
		if err != nil {
			return out, err
		}
		out.Hops = append(out.Hops, hop)
	}
	return out, nil
}

// way is a way out as a route or a nexthop object has it.
type way struct {
	nexthop uint32
	gateway netip.Addr
	index   int
}

// entry is one of a forwarding table.
type entry struct {
	match Match
	ways  []way // of a route without a nexthop object
}

// lookUp asks for the entry that takes the address. For one that drops the kernel answers with an error
// alone: then the main table tells which it was, if it was one of its own.
func (r reader) lookUp(addr netip.Addr) (found *entry, refused, err error) {
	bits := byte(addr.BitLen())
	req := nl.NewNetlinkRequest(unix.RTM_GETROUTE, 0)
	flags := binary.NativeEndian.AppendUint32(nil, fibMatch|lookUpTable)
	req.AddRawData(slices.Concat([]byte{family(addr), bits, 0, 0, 0, 0, 0, 0}, flags, nl.NewRtAttr(unix.RTA_DST, addr.AsSlice()).Serialize()))
	answers, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWROUTE)
	var errno unix.Errno
	if errors.As(err, &errno) {
		found, err = r.mostSpecific(addr)
		return found, errno, err
	}
	if err != nil {
		return nil, nil, fmt.Errorf("look up the route: %w", err)
	}
	for _, a := range answers {
		if e, ok := parseRoute(a); ok {
			return &e, nil, nil
		}
	}
	return nil, unix.ENETUNREACH, nil
}

// mostSpecific searches the main table; nil if no route covers the address.
func (r reader) mostSpecific(addr netip.Addr) (*entry, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETROUTE, unix.NLM_F_DUMP)
	body := make([]byte, rtmsgLen)
	body[0], body[4] = family(addr), unix.RT_TABLE_MAIN
	req.AddRawData(body)
	var best *entry
	err := req.ExecuteIter(unix.NETLINK_ROUTE, unix.RTM_NEWROUTE, func(m []byte) bool {
		e, ok := parseRoute(m)
		if ok && e.match.Table == unix.RT_TABLE_MAIN && e.match.Prefix.Contains(addr) && (best == nil || e.before(best)) {
			best = &e
		}
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("read the main table: %w", err)
	}
	return best, nil
}

// before says whether the kernel takes e rather than o, if both cover an address.
func (e *entry) before(o *entry) bool {
	if a, b := e.match.Prefix.Bits(), o.match.Prefix.Bits(); a != b {
		return a > b
	}
	return e.match.Metric < o.match.Metric
}

// parseRoute reads a rtmsg and its attributes; false if it is none or a cached one.
func parseRoute(b []byte) (entry, bool) {
	if len(b) < rtmsgLen || binary.NativeEndian.Uint32(b[8:])&unix.RTM_F_CLONED != 0 {
		return entry{}, false
	}
	e := entry{match: Match{Type: typeName(b[7]), Protocol: b[5], Table: uint32(b[4])}}
	dst := netip.IPv4Unspecified()
	if b[0] == unix.AF_INET6 {
		dst = netip.IPv6Unspecified()
	}
	var single way
	for typ, v := range kernel.Attributes(b[rtmsgLen:]) {
		switch typ {
		case unix.RTA_DST:
			dst = kernel.Addr(v)
		case unix.RTA_TABLE:
			e.match.Table = kernel.Uint32(v)
		case unix.RTA_PRIORITY:
			e.match.Metric = kernel.Uint32(v)
		case unix.RTA_PREFSRC:
			e.match.Source = kernel.Addr(v)
		case rtaNexthopID:
			e.match.Nexthop = kernel.Uint32(v)
		case unix.RTA_METRICS:
			e.match.MTU = metricMTU(v)
		case unix.RTA_OIF:
			single.index = int(kernel.Uint32(v))
		case unix.RTA_GATEWAY:
			single.gateway = kernel.Addr(v)
		case unix.RTA_VIA:
			single.gateway = via(v)
		case unix.RTA_MULTIPATH:
			e.ways = multipath(v)
		}
	}
	if len(e.ways) == 0 && single.index != 0 {
		e.ways = []way{single}
	}
	e.match.Prefix = netip.PrefixFrom(dst, int(b[1]))
	return e, e.match.Prefix.IsValid()
}

func metricMTU(b []byte) uint32 {
	for typ, v := range kernel.Attributes(b) {
		if typ == rtaxMTU {
			return kernel.Uint32(v)
		}
	}
	return 0
}

// via reads a gateway of the other family (struct rtvia).
func via(v []byte) netip.Addr {
	if len(v) < 2 {
		return netip.Addr{}
	}
	return kernel.Addr(v[2:])
}

// multipath reads the ways of a route that has several.
func multipath(b []byte) []way {
	var ways []way
	for len(b) >= rtnexthopLen {
		l := int(binary.NativeEndian.Uint16(b))
		if l < rtnexthopLen || l > len(b) {
			break
		}
		w := way{index: int(binary.NativeEndian.Uint32(b[4:]))}
		for typ, v := range kernel.Attributes(b[rtnexthopLen:l]) {
			switch typ {
			case unix.RTA_GATEWAY:
				w.gateway = kernel.Addr(v)
			case unix.RTA_VIA:
				w.gateway = via(v)
			}
		}
		ways = append(ways, w)
		b = b[min((l+3)&^3, len(b)):]
	}
	return ways
}

// object reads a nexthop object: its one way, or those of a group.
func (r reader) object(id uint32) ([]way, error) {
	w, members, err := r.nexthop(id)
	if err != nil {
		return nil, err
	}
	if members == nil {
		return []way{w}, nil
	}
	var ways []way
	for _, m := range members {
		// Groups do not hold groups (nexthop.c: valid_group_nh), save for resilient ones, which nobody here makes.
		w, _, err := r.nexthop(m)
		if errors.Is(err, unix.ENOENT) {
			continue // it went meanwhile
		}
		if err != nil {
			return nil, err
		}
		ways = append(ways, w)
	}
	return ways, nil
}

func (r reader) nexthop(id uint32) (w way, members []uint32, err error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETNEXTHOP, 0)
	req.AddRawData(append(make([]byte, nhmsgLen), nl.NewRtAttr(unix.NHA_ID, binary.NativeEndian.AppendUint32(nil, id)).Serialize()...))
	answers, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNEXTHOP)
	if err != nil {
		return way{}, nil, fmt.Errorf("read nexthop object %d: %w", id, err)
	}
	w.nexthop = id
	for _, a := range answers {
		if len(a) < nhmsgLen {
			continue
		}
		for typ, v := range kernel.Attributes(a[nhmsgLen:]) {
			switch typ {
			case unix.NHA_GATEWAY:
				w.gateway = kernel.Addr(v)
			case unix.NHA_OIF:
				w.index = int(kernel.Uint32(v))
			case unix.NHA_GROUP:
				for ; len(v) >= 8; v = v[8:] { // struct nexthop_grp
					members = append(members, binary.NativeEndian.Uint32(v))
				}
			}
		}
	}
	return w, members, nil
}

// hop tells what there is at the end of a way.
func (r reader) hop(addr netip.Addr, w way, tunnels bool) (Hop, error) {
	h := Hop{Nexthop: w.nexthop, Gateway: w.gateway}
	device, err := r.device(w.index)
	if err != nil {
		return h, err
	}
	h.Device = device
	asked := w.gateway
	if !asked.IsValid() {
		asked = addr
	}
	var mac net.HardwareAddr
	if h.Neighbour, mac, err = r.neighbour(w.index, asked); err != nil {
		return h, err
	}
	switch device.Kind {
	case "ipip":
		h.Remote = asked // the device knows no remote end: that of the route is it
	case "vxlan":
		if h.Remote, err = r.forwarding(w.index, mac); err != nil {
			return h, err
		}
	}
	if h.Remote.IsValid() && tunnels {
		underlay, err := r.route(h.Remote, false)
		if err != nil {
			return h, err
		}
		h.Underlay = &underlay
	}
	return h, nil
}

func (r reader) device(index int) (Device, error) {
	d := Device{Index: index}
	l, err := r.nl.LinkByIndex(index)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return d, nil
	}
	if err != nil {
		return d, fmt.Errorf("read device %d: %w", index, err)
	}
	a := l.Attrs()
	d.Name, d.Kind, d.MTU = a.Name, l.Type(), a.MTU
	d.Up, d.Carrier = a.Flags&net.FlagUp != 0, a.RawFlags&unix.IFF_LOWER_UP != 0
	return d, nil
}

// neighbour reads the entry of an address on a device; nil if there is none.
func (r reader) neighbour(index int, addr netip.Addr) (*Neighbour, net.HardwareAddr, error) {
	list, err := r.nl.NeighList(index, int(family(addr)))
	if err != nil {
		return nil, nil, fmt.Errorf("read neighbours of device %d: %w", index, err)
	}
	for _, n := range list {
		if ip, ok := netip.AddrFromSlice(n.IP); !ok || ip.Unmap() != addr {
			continue
		}
		return &Neighbour{MAC: n.HardwareAddr.String(), State: stateName(n.State)}, n.HardwareAddr, nil
	}
	return nil, nil, nil
}

// forwarding finds the remote end to which a VXLAN device sends frames for a MAC.
func (r reader) forwarding(index int, mac net.HardwareAddr) (netip.Addr, error) {
	if len(mac) == 0 {
		return netip.Addr{}, nil
	}
	list, err := r.nl.NeighList(index, unix.AF_BRIDGE)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("read the FDB of device %d: %w", index, err)
	}
	for _, n := range list {
		if n.HardwareAddr.String() == mac.String() {
			ip, _ := netip.AddrFromSlice(n.IP)
			return ip.Unmap(), nil
		}
	}
	return netip.Addr{}, nil
}

func family(a netip.Addr) byte {
	if a.Is6() {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

func typeName(t byte) string {
	switch t {
	case unix.RTN_UNICAST:
		return TypeUnicast
	case unix.RTN_LOCAL:
		return TypeLocal
	case unix.RTN_BLACKHOLE:
		return TypeBlackhole
	case unix.RTN_UNREACHABLE:
		return TypeUnreachable
	case unix.RTN_PROHIBIT:
		return TypeProhibit
	case unix.RTN_THROW:
		return TypeThrow
	}
	return fmt.Sprintf("type %d", t)
}

func stateName(state int) string {
	for _, s := range []struct {
		bit  int
		name string
	}{
		{netlink.NUD_PERMANENT, "permanent"}, {netlink.NUD_NOARP, "noarp"}, {netlink.NUD_REACHABLE, "reachable"},
		{netlink.NUD_STALE, "stale"}, {netlink.NUD_DELAY, "delay"}, {netlink.NUD_PROBE, "probe"},
		{netlink.NUD_FAILED, stateFailed}, {netlink.NUD_INCOMPLETE, stateIncomplete},
	} {
		if state&s.bit != 0 {
			return s.name
		}
	}
	return "none"
}
