// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/heliograph-dev/heliograph/policy"
)

func TestICMP(t *testing.T) {
	code := func(c uint8) policy.ICMPMatch { return policy.ICMPMatch{HasCode: true, Code: c} }
	typ := func(i uint8) policy.ICMPMatch { return policy.ICMPMatch{HasType: true, Type: i} }
	typeAndCode := func(i, c uint8) policy.ICMPMatch {
		return policy.ICMPMatch{HasType: true, Type: i, HasCode: true, Code: c}
	}
	for _, tt := range []struct {
		name   string
		family policy.Family
		in     policy.Transport
		want   []string // the first three
	}{
		{"a type", policy.IPv4, policy.Transport{Protocol: policy.ICMP, ICMP: typ(8)}, []string{"-p icmp -m icmp --icmp-type 8"}},
		{"type and code", policy.IPv4, policy.Transport{ICMP: typeAndCode(3, 4)}, []string{"-p icmp -m icmp --icmp-type 3/4"}},
		{"a type that means any to iptables", policy.IPv4, policy.Transport{ICMP: typ(255)}, []string{"-p icmp -m u32 --u32 0>>22&0x3C@0>>16&0xFF00=0xFF00"}},
		{"the same with a code", policy.IPv4, policy.Transport{ICMP: typeAndCode(255, 1)}, []string{"-p icmp -m u32 --u32 0>>22&0x3C@0>>16&0xFFFF=0xFF01"}},
		{"a code alone", policy.IPv4, policy.Transport{ICMP: code(1)}, []string{"-p icmp -m u32 --u32 0>>22&0x3C@0>>16&0xFF=1"}},
		{"a type of ICMPv6", policy.IPv6, policy.Transport{ICMP: typ(255)}, []string{"-p ipv6-icmp -m icmp6 --icmpv6-type 255"}},
		{"a code of ICMPv6 alone", policy.IPv6, policy.Transport{ICMP: code(1)}, []string{"-p ipv6-icmp -m icmp6 --icmpv6-type 0/1", "-p ipv6-icmp -m icmp6 --icmpv6-type 1/1", "-p ipv6-icmp -m icmp6 --icmpv6-type 2/1"}},
		{"ICMPv6 in IPv4", policy.IPv4, policy.Transport{Protocol: policy.ICMPv6, ICMP: typ(128)}, nil},
		{"ICMP in IPv6", policy.IPv6, policy.Transport{Protocol: policy.ICMP, ICMP: typ(8)}, nil},
		{"of TCP", policy.IPv4, policy.Transport{Protocol: policy.TCP, ICMP: typ(8)}, nil},
		{"and a port", policy.IPv4, policy.Transport{ICMP: typ(8), DestinationPorts: policy.Ports{Ranges: []policy.PortRange{{First: 1, Last: 1}}}}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := matcher{family: tt.family}.transport(tt.in)
			if diff := cmp.Diff(tt.want, got[:min(3, len(got))]); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestPrefixes(t *testing.T) {
	net := func(cidr string, except ...string) policy.Net {
		n := policy.Net{CIDR: netip.MustParsePrefix(cidr)}
		for _, e := range except {
			n.Except = append(n.Except, netip.MustParsePrefix(e))
		}
		return n
	}
	for _, tt := range []struct {
		name string
		in   []policy.Net
		want []string
	}{
		{"nothing", nil, nil},
		{"of the other family", []policy.Net{net("fd00::/8")}, nil},
		{"one", []policy.Net{net("10.1.2.3/8")}, []string{"10.0.0.0/8"}},
		{"nested, and twice", []policy.Net{net("10.0.0.0/8"), net("10.1.0.0/16"), net("10.0.0.0/8")}, []string{"10.0.0.0/8", "10.1.0.0/16"}},
		{"an exception", []policy.Net{net("10.0.0.0/8", "10.64.0.0/10")}, []string{"10.0.0.0/10", "10.128.0.0/9"}},
		{"exceptions that overlap", []policy.Net{net("10.0.0.0/8", "10.64.0.0/10", "10.64.0.0/16", "10.0.0.0/9")}, []string{"10.128.0.0/9"}},
		{"an exception of one net that another holds", []policy.Net{net("10.0.0.0/8", "10.0.0.0/9"), net("10.1.0.0/16")}, []string{"10.1.0.0/16", "10.128.0.0/9"}},
		{"all of it", []policy.Net{net("10.0.0.0/8", "0.0.0.0/0")}, nil},
		{"halves of everything", []policy.Net{net("0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1")}, nil},
		{"an exception elsewhere", []policy.Net{net("10.0.0.0/8", "11.0.0.0/8", "fd00::/8")}, []string{"10.0.0.0/8"}},
		{"an address", []policy.Net{net("10.0.0.0/30", "10.0.0.2/32")}, []string{"10.0.0.0/31", "10.0.0.3/32"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, p := range prefixes(tt.in, policy.IPv4) {
				got = append(got, p.String())
			}
			slices.Sort(got)
			if diff := cmp.Diff(tt.want, got, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestAllOfIt: a network of all addresses is two halves in an ipset, which may be members themselves.
func TestAllOfIt(t *testing.T) {
	s := newSets()
	s.declare("x", policy.AddressSet, policy.IPv4, []policy.Member{member("0.0.0.0/0"), member("128.0.0.0/1"), member("::/0")})
	s.change("x", nil, []policy.Member{member("0.0.0.0/0")})
	if got := s.want["x"].part(true); !slices.Equal(got, []policy.Member{member("128.0.0.0/1")}) {
		t.Errorf("got %s, want the half that is a member", got)
	}
}
