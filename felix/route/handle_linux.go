// SPDX-License-Identifier: Apache-2.0

package route

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"math"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/felix/kernel"
)

const (
	rtmsgLen     = 12 // struct rtmsg
	loopback     = 1  // index of lo in every namespace
	rtaNexthopID = 30 // RTA_NH_ID
	rtaxMTU      = 2  // RTAX_MTU
)

// Kernel is the Handle to one routing table of the kernel.
type Kernel struct {
	conn  *kernel.Conn
	table uint32
	batch kernel.Batch
}

var _ Handle = (*Kernel)(nil)

// NewKernel returns a handle that works through conn on the table of that number; 0 is the main table.
func NewKernel(conn *kernel.Conn, table uint32) *Kernel {
	if table == 0 {
		table = mainTable
	}
	return &Kernel{conn: conn, table: table}
}

// Table tells the number of the table.
func (k *Kernel) Table() uint32 { return k.table }

// ListRoutes reads the table of both families.
func (k *Kernel) ListRoutes(ctx context.Context) (iter.Seq[Entry], error) {
	var dump []byte
	var interrupted error
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		k.batch.Reset()
		k.begin(unix.RTM_GETROUTE, 0, family, 0, 0, 0, 0)
		var err error
		dump, err = k.conn.Dump(ctx, &k.batch, dump)
		switch {
		case errors.Is(err, kernel.ErrInterrupted):
			interrupted = err
		case errors.Is(err, unix.ENOENT): // no route was ever made: there is no table
		case err != nil:
			return nil, err
		}
	}
	return func(yield func(Entry) bool) {
		p := parser{linkName: k.conn.LinkName, names: map[uint32]string{}}
		for m := range kernel.Messages(dump) {
			if m.Type != unix.RTM_NEWROUTE {
				continue
			}
			if e, ok := p.parse(m.Body); ok && !yield(e) {
				return
			}
		}
	}, interrupted
}

// CreateRoutes creates routes where none with our metric stands.
func (k *Kernel) CreateRoutes(ctx context.Context, routes []desired.Route) []error {
	return k.write(ctx, routes, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
}

// ReplaceRoutes replaces routes, or creates them if they are gone, one message each.
func (k *Kernel) ReplaceRoutes(ctx context.Context, routes []desired.Route) []error {
	return k.write(ctx, routes, unix.NLM_F_CREATE|unix.NLM_F_REPLACE)
}

// DeleteRoutes deletes routes with our protocol. The kernel compares protocol and metric too.
func (k *Kernel) DeleteRoutes(ctx context.Context, keys []Key) []error {
	k.batch.Reset()
	for _, key := range keys {
		k.header(unix.RTM_DELROUTE, 0, key.Prefix, unix.RT_SCOPE_NOWHERE, unix.RTN_UNSPEC)
		if key.Metric != 0 {
			k.batch.AttrUint32(unix.RTA_PRIORITY, key.Metric)
		}
	}
	return k.conn.Execute(ctx, &k.batch)
}

// write sends what can be said; a route to a device that does not exist fails on the spot.
func (k *Kernel) write(ctx context.Context, routes []desired.Route, flags uint16) []error {
	k.batch.Reset()
	var errs []error // of those that were not sent
	for i, r := range routes {
		if err := k.add(r, flags); err != nil {
			if errs == nil {
				errs = make([]error, len(routes))
			}
			errs[i] = err
		}
	}
	results := k.conn.Execute(ctx, &k.batch)
	switch {
	case errs == nil:
		return results
	case results == nil:
		return errs
	}
	for i := range errs {
		if errs[i] == nil {
			errs[i], results = results[0], results[1:]
		}
	}
	return errs
}

func (k *Kernel) add(r desired.Route, flags uint16) error {
	switch r.Type {
	case desired.RouteNexthop:
		k.header(unix.RTM_NEWROUTE, flags, r.Prefix, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST)
		k.batch.AttrUint32(rtaNexthopID, uint32(r.Nexthop))
	case desired.RouteDevice:
		index, err := k.conn.LinkIndex(r.Device)
		if err != nil {
			return err
		}
		k.header(unix.RTM_NEWROUTE, flags, r.Prefix, unix.RT_SCOPE_LINK, unix.RTN_UNICAST)
		k.batch.AttrUint32(unix.RTA_OIF, uint32(index))
	case desired.RouteBlackhole:
		k.header(unix.RTM_NEWROUTE, flags, r.Prefix, unix.RT_SCOPE_UNIVERSE, unix.RTN_BLACKHOLE)
		if r.Prefix.Addr().Is6() {
			k.batch.AttrUint32(unix.RTA_OIF, loopback) // where IPv6 would put it anyway
		}
	default:
		return fmt.Errorf("route type %d: %w", r.Type, unix.EINVAL)
	}
	k.batch.AttrUint32(unix.RTA_PRIORITY, desired.RouteMetric)
	if r.Source.IsValid() {
		k.batch.AttrAddr(unix.RTA_PREFSRC, r.Source)
	}
	// Linux takes an IPv4 route to a nexthop object that says nothing of metrics for the same as one
	// that has some, and lets the two share them (fib_find_info_nh): hence an explicit 0.
	if mtu := packMTU(r.MTU); mtu != 0 || r.Type == desired.RouteNexthop && r.Prefix.Addr().Is4() {
		var metric [8]byte // an attribute of four bytes in the attribute
		binary.NativeEndian.PutUint16(metric[0:], 8)
		binary.NativeEndian.PutUint16(metric[2:], rtaxMTU)
		binary.NativeEndian.PutUint32(metric[4:], uint32(mtu))
		k.batch.Attr(unix.RTA_METRICS, metric[:])
	}
	return nil
}

// header begins a message about a route of ours.
func (k *Kernel) header(typ, flags uint16, p netip.Prefix, scope, rtype byte) {
	family := byte(unix.AF_INET)
	if p.Addr().Is6() {
		family = unix.AF_INET6
	}
	k.begin(typ, flags, family, byte(p.Bits()), desired.Protocol, scope, rtype)
	k.batch.AttrAddr(unix.RTA_DST, p.Addr())
}

// begin begins a message about the table. A number beyond a byte goes into an attribute.
func (k *Kernel) begin(typ, flags uint16, family, bits, protocol, scope, rtype byte) {
	table := byte(unix.RT_TABLE_UNSPEC)
	if k.table <= math.MaxUint8 {
		table = byte(k.table)
	}
	k.batch.Begin(typ, flags)
	k.batch.Raw(family, bits, 0, 0, table, protocol, scope, rtype, 0, 0, 0, 0)
	if k.table > math.MaxUint8 {
		k.batch.AttrUint32(unix.RTA_TABLE, k.table)
	}
}

// parser reads routes of a dump; names remembers the devices met.
type parser struct {
	linkName func(int) (string, error)
	names    map[uint32]string
}

// parse reads a rtmsg and its attributes; false if it is none that can concern us. For a route to a
// nexthop object the kernel adds, for old readers, what the object is now: that is passed over.
func (p *parser) parse(body []byte) (Entry, bool) {
	if len(body) < rtmsgLen || body[3] != 0 || binary.NativeEndian.Uint32(body[8:])&unix.RTM_F_CLONED != 0 {
		return Entry{}, false
	}
	e := Entry{Protocol: body[5]}
	var dst netip.Addr
	var oif, nexthop uint32
	strange, odd := false, false
	for typ, v := range kernel.Attributes(body[rtmsgLen:]) {
		switch typ {
		case unix.RTA_DST:
			dst = kernel.Addr(v)
		case unix.RTA_PRIORITY:
			e.Metric = kernel.Uint32(v)
		case rtaNexthopID:
			nexthop = kernel.Uint32(v)
		case unix.RTA_OIF:
			oif = kernel.Uint32(v)
		case unix.RTA_PREFSRC:
			e.Route.Source = kernel.Addr(v)
		case unix.RTA_GATEWAY, unix.RTA_VIA, unix.RTA_MULTIPATH, unix.RTA_ENCAP:
			strange = true
		case unix.RTA_METRICS:
			e.Route.MTU, odd = parseMetrics(v)
		}
	}
	switch {
	case dst.IsValid():
	case body[0] == unix.AF_INET:
		dst = netip.IPv4Unspecified()
	default:
		dst = netip.IPv6Unspecified()
	}
	e.Route.Prefix = netip.PrefixFrom(dst, int(body[1]))
	switch {
	case e.Protocol != desired.Protocol:
		e.Route = desired.Route{Prefix: e.Route.Prefix}
	case !odd:
		p.target(&e.Route, body[7], nexthop, oif, strange)
	}
	return e, e.Route.Prefix.IsValid()
}

// parseMetrics reads the MTU; odd if there are metrics that we never set.
func parseMetrics(b []byte) (mtu int, odd bool) {
	for typ, v := range kernel.Attributes(b) {
		if typ == rtaxMTU {
			mtu = int(kernel.Uint32(v))
		} else {
			odd = true
		}
	}
	return mtu, odd
}

// target tells the type of one of our routes; one that we would not make so keeps type 0.
func (p *parser) target(r *desired.Route, rtype byte, nexthop, oif uint32, strange bool) {
	switch {
	case rtype == unix.RTN_BLACKHOLE:
		r.Type = desired.RouteBlackhole
	case rtype != unix.RTN_UNICAST:
	case nexthop != 0:
		r.Type, r.Nexthop = desired.RouteNexthop, desired.NexthopID(nexthop)
	case !strange && oif != 0:
		r.Type, r.Device = desired.RouteDevice, p.name(oif)
	}
}

func (p *parser) name(index uint32) string {
	name, ok := p.names[index]
	if !ok {
		name, _ = p.linkName(int(index)) // a device that is gone has no name: the route goes too
		p.names[index] = name
	}
	return name
}
