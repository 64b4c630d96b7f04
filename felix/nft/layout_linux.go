// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"net"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/felix/kernel"
)

// What `nft list table inet heliograph` shows, without the sets:
//
//	chain forward { type filter hook forward priority filter
//	    iifname "hel*" jump source               # a pod sends from its own address
//	    oifname "hel*" jump target               # nothing goes to a device that we do not know
//	}
//	chain input { type filter hook input priority filter
//	    udp dport @vxlan_ports ip saddr != @nodes4 drop      # only nodes send VXLAN
//	    udp dport @vxlan_ports ip6 saddr != @nodes6 drop
//	    ip protocol ipip ip daddr @ipip_local4 ip saddr != @nodes4 ip saddr != @ipip_others4 drop   # and IPIP,
//	                                             # unless it is a tunnel of somebody else's on this host
//	    iifname "hel*" jump host                 # what pods may send to the node
//	}
//	chain output { type filter hook output priority filter
//	    oifname "hel*" jump target
//	}
//	chain clamp { type filter hook forward priority mangle
//	    oifname @tunnels tcp flags & (syn|rst) == syn tcp option maxseg size set rt mtu
//	}
//	chain postrouting { type nat hook postrouting priority srcnat
//	    oifname != "lo" ip saddr @nat_sources4 ip daddr != @no_nat4 masquerade fully-random   # and IPv6
//	}
//
// The policies of all are accept: a packet that is none of our business passes, as far as we go.

// setSpec is the type of a set.
type setSpec struct {
	name string
	key  nftables.SetDatatype
	// The parts of a concatenation lie in registers of 16 bytes: NFT_REG_1, NFT_REG_2.
	concat bool
}

// rule is a rule with its stable name, which is its comment in the kernel.
type rule struct {
	name  string
	exprs []expr.Any
}

// chain is a chain; one without a hook is only jumped to.
type chain struct {
	name     string
	kind     nftables.ChainType
	hook     *nftables.ChainHook
	priority *nftables.ChainPriority
	rules    []rule
}

func setLayout() []setSpec {
	return []setSpec{
		{name: setWorkloads, key: nftables.TypeIFName},
		{name: setTunnels, key: nftables.TypeIFName},
		{name: setPorts, key: nftables.TypeInetService},
		{name: setEndpoints4, key: nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIPAddr), concat: true},
		{name: setEndpoints6, key: nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIP6Addr), concat: true},
		{name: setNodes4, key: nftables.TypeIPAddr},
		{name: setNodes6, key: nftables.TypeIP6Addr},
		{name: setIPIPLocal4, key: nftables.TypeIPAddr},
		{name: setIPIPOthers4, key: nftables.TypeIPAddr},
		{name: setSources4, key: nftables.TypeIPAddr},
		{name: setSources6, key: nftables.TypeIP6Addr},
		{name: setNoNAT4, key: nftables.TypeIPAddr},
		{name: setNoNAT6, key: nftables.TypeIP6Addr},
	}
}

// chainLayout returns the chains in the order in which they are made: what is jumped to comes first.
func chainLayout() []chain {
	return []chain{
		{name: "source", rules: sourceRules()},
		{name: "target", rules: []rule{
			{"tunnel", join(oifIn(setTunnels), verdict(expr.VerdictReturn))},
			{"workload", join(oifIn(setWorkloads), verdict(expr.VerdictReturn))},
			{"unknown-device", drop()},
		}},
		{name: "host", rules: hostRules()},
		{name: "forward", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookForward, priority: nftables.ChainPriorityFilter, rules: []rule{
			{"from-hel", join(iifOurs(), jump("source"))},
			{"to-hel", join(oifOurs(), jump("target"))},
		}},
		{name: "input", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookInput, priority: nftables.ChainPriorityFilter, rules: []rule{
			{"vxlan-stranger4", join(vxlan(), ipv4(), saddr4(), notIn(setNodes4), drop())},
			{"vxlan-stranger6", join(vxlan(), ipv6(), saddr6(), notIn(setNodes6), drop())},
			{"ipip-stranger", join(ipv4(), l4proto(unix.IPPROTO_IPIP), daddr4(), in(setIPIPLocal4),
				saddr4(), notIn(setNodes4), notIn(setIPIPOthers4), drop())},
			{"from-hel", join(iifOurs(), jump("host"))},
		}},
		{name: "output", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookOutput, priority: nftables.ChainPriorityFilter, rules: []rule{
			{"to-hel", join(oifOurs(), jump("target"))},
		}},
		{name: "clamp", kind: nftables.ChainTypeFilter, hook: nftables.ChainHookForward, priority: nftables.ChainPriorityMangle, rules: []rule{
			{"mss", join(oifIn(setTunnels), tcpSYN(), clampMSS())},
		}},
		{name: "postrouting", kind: nftables.ChainTypeNAT, hook: nftables.ChainHookPostrouting, priority: nftables.ChainPriorityNATSource, rules: []rule{
			{"masquerade4", join(oifNotLoopback(), ipv4(), saddr4(), in(setSources4), daddr4(), notIn(setNoNAT4), masquerade())},
			{"masquerade6", join(oifNotLoopback(), ipv6(), saddr6(), in(setSources6), daddr6(), notIn(setNoNAT6), masquerade())},
		}},
	}
}

// sourceRules let pass what comes from a tunnel, and from a workload with an address of its own.
func sourceRules() []rule {
	return []rule{
		{"tunnel", join(iifIn(setTunnels), verdict(expr.VerdictReturn))},
		{"own-address4", join(ipv4(), iifAnd(saddr4), in(setEndpoints4), verdict(expr.VerdictReturn))},
		{"own-address6", join(ipv6(), iifAnd(saddr6), in(setEndpoints6), verdict(expr.VerdictReturn))},
		{"spoofed", drop()},
	}
}

// hostRules are those of traffic to the node itself. Neighbour discovery is from link-local addresses;
// all else from there (router solicitations, MLD) or from :: (DAD) drops beside "spoofed", whose
// counter would otherwise count the noise of every pod that starts.
func hostRules() []rule {
	const solicitation, advertisement = 135, 136
	linkLocal := func() []expr.Any {
		return join(ipv6(), saddr6(), mask(net.CIDRMask(10, 128)), equals(append([]byte{0xfe, 0x80}, make([]byte, 14)...)...))
	}
	return []rule{
		{"tunnel", join(iifIn(setTunnels), verdict(expr.VerdictReturn))},
		{"ndp", join(iifIn(setWorkloads), linkLocal(), l4proto(unix.IPPROTO_ICMPV6), transport(0, 1),
			compare(expr.CmpOpGte, solicitation), compare(expr.CmpOpLte, advertisement), verdict(expr.VerdictReturn))},
		{"link-local", join(linkLocal(), drop())},
		{"unspecified6", join(ipv6(), saddr6(), equals(make([]byte, 16)...), drop())},
		{"own-address", jump("source")},
	}
}

// Matches and statements. Each is a few expressions that load register 1 and compare it.

func join(parts ...[]expr.Any) []expr.Any {
	var out []expr.Any
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

func meta(key expr.MetaKey) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: 1}}
}

func compare(op expr.CmpOp, data ...byte) []expr.Any {
	return []expr.Any{&expr.Cmp{Op: op, Register: 1, Data: data}}
}

func equals(data ...byte) []expr.Any { return compare(expr.CmpOpEq, data...) }

func in(set string) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: 1, SetName: set}}
}

func notIn(set string) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: 1, SetName: set, Invert: true}}
}

// iifOurs is `iifname "hel*"`: a comparison of the first three bytes.
func iifOurs() []expr.Any {
	return join(meta(expr.MetaKeyIIFNAME), equals([]byte(desired.LinkPrefix)...))
}

func oifOurs() []expr.Any {
	return join(meta(expr.MetaKeyOIFNAME), equals([]byte(desired.LinkPrefix)...))
}

func oifNotLoopback() []expr.Any {
	return join(meta(expr.MetaKeyOIFNAME), compare(expr.CmpOpNeq, []byte(kernel.PaddedName("lo"))...))
}

func iifIn(set string) []expr.Any { return join(meta(expr.MetaKeyIIFNAME), in(set)) }
func oifIn(set string) []expr.Any { return join(meta(expr.MetaKeyOIFNAME), in(set)) }

// iifAnd loads the device's name and behind it, into the next register, an address.
func iifAnd(addr func() []expr.Any) []expr.Any {
	a := addr()
	a[0].(*expr.Payload).DestRegister = 2
	return join(meta(expr.MetaKeyIIFNAME), a)
}

func ipv4() []expr.Any { return join(meta(expr.MetaKeyNFPROTO), equals(unix.NFPROTO_IPV4)) }
func ipv6() []expr.Any { return join(meta(expr.MetaKeyNFPROTO), equals(unix.NFPROTO_IPV6)) }

func network(offset, length uint32) []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length}}
}

func transport(offset, length uint32) []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: length}}
}

func saddr4() []expr.Any { return network(12, 4) }
func daddr4() []expr.Any { return network(16, 4) }
func saddr6() []expr.Any { return network(8, 16) }
func daddr6() []expr.Any { return network(24, 16) }

func mask(m []byte) []expr.Any {
	return []expr.Any{&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(len(m)), Mask: m, Xor: make([]byte, len(m))}}
}

func l4proto(p byte) []expr.Any { return join(meta(expr.MetaKeyL4PROTO), equals(p)) }

// vxlan is `udp dport @vxlan_ports`.
func vxlan() []expr.Any { return join(l4proto(unix.IPPROTO_UDP), transport(2, 2), in(setPorts)) }

// tcpSYN is `tcp flags & (syn|rst) == syn`: both sides' first segments.
func tcpSYN() []expr.Any {
	const syn, rst = 2, 4
	return join(l4proto(unix.IPPROTO_TCP), transport(13, 1), mask([]byte{syn | rst}), equals(syn))
}

// clampMSS is `tcp option maxseg size set rt mtu`. The kernel only ever lowers it.
func clampMSS() []expr.Any {
	const maxseg = 2
	return []expr.Any{
		&expr.Rt{Register: 1, Key: expr.RtTCPMSS},
		&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 2, Size: 2},
		&expr.Exthdr{SourceRegister: 1, Type: maxseg, Offset: 2, Len: 2, Op: expr.ExthdrOpTcpopt},
	}
}

// masquerade picks ports at random, fully: without that, two packets that race get the same one, and
// one of them drops.
func masquerade() []expr.Any {
	return []expr.Any{&expr.Counter{}, &expr.Masq{FullyRandom: true}}
}

func verdict(kind expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: kind}} }

func jump(chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}
}

func drop() []expr.Any { return []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}} }

// byteOrder is how nft shows the elements of a set: names are in host order, addresses are not.
func byteOrder(s setSpec) binaryutil.ByteOrder {
	if s.key.Name == nftables.TypeIFName.Name {
		return binaryutil.NativeEndian
	}
	return binaryutil.BigEndian
}
