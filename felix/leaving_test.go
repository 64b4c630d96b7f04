// SPDX-License-Identifier: Apache-2.0

package felix

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/heliograph-dev/heliograph/felix/calc"
	"github.com/heliograph-dev/heliograph/felix/desired"
)

// TestLeaving: what a state has no more of tunnels stays for a while, whole, and then goes whole.
func TestLeaving(t *testing.T) {
	vxlan, ipip := desired.VXLAN{Name: desired.VXLANDevice, Port: 4789}, desired.IPIP{Name: desired.IPIPDevice}
	lo, onVXLAN, onIPIP := desired.Address{Device: "lo"}, desired.Address{Device: desired.VXLANDevice}, desired.Address{Device: desired.IPIPDevice}
	neighbour, entry := desired.Neighbour{Device: desired.VXLANDevice}, desired.FDBEntry{Device: desired.VXLANDevice}
	own, others := []netip.Addr{addr("192.168.11.1")}, []netip.Addr{addr("198.51.100.7")}
	both := calc.RemoteState{
		VXLANs: []desired.VXLAN{vxlan}, IPIPs: []desired.IPIP{ipip}, Addresses: []desired.Address{lo, onVXLAN, onIPIP},
		Neighbours: []desired.Neighbour{neighbour}, FDB: []desired.FDBEntry{entry},
		NFT: desired.NFT{Tunnels: []string{desired.VXLANDevice, desired.IPIPDevice}, VXLANPorts: []uint16{4789}, IPIPLocal: own, IPIPOthers: others},
	}
	onlyVXLAN := both
	onlyVXLAN.IPIPs, onlyVXLAN.Addresses = nil, []desired.Address{lo, onVXLAN}
	onlyVXLAN.NFT = desired.NFT{Tunnels: []string{desired.VXLANDevice}, VXLANPorts: []uint16{4789}}
	none := calc.RemoteState{Addresses: []desired.Address{lo}}

	l, last := leaving{linger: 10 * time.Second}, calc.RemoteState{}
	begin := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	for _, step := range []struct {
		name  string
		at    time.Duration
		in    calc.RemoteState
		stuck bool
		want  calc.RemoteState
		until time.Duration // 0: nothing is leaving
	}{
		{name: "both are wanted", in: both, want: both},
		{name: "IPIP no more", at: 1 * time.Second, in: onlyVXLAN, want: both, until: 11 * time.Second},
		{name: "still not", at: 10 * time.Second, in: onlyVXLAN, want: both, until: 11 * time.Second},
		{name: "it goes", at: 11 * time.Second, in: onlyVXLAN, want: onlyVXLAN},
		{name: "both again", at: 12 * time.Second, in: both, want: both},
		{name: "IPIP no more, again", at: 13 * time.Second, in: onlyVXLAN, want: both, until: 23 * time.Second},
		{name: "nor VXLAN: both begin to wait", at: 22 * time.Second, in: none, want: both, until: 32 * time.Second},
		{name: "but VXLAN after all", at: 23 * time.Second, in: onlyVXLAN, want: both, until: 33 * time.Second},
		{name: "a route could not leave", at: 33 * time.Second, in: onlyVXLAN, stuck: true, want: both, until: 33 * time.Second},
		{name: "now it could", at: 34 * time.Second, in: onlyVXLAN, want: onlyVXLAN},
	} {
		last = l.keep(begin.Add(step.at), last, step.in, step.stuck)
		until := time.Time{}
		if step.until > 0 {
			until = begin.Add(step.until)
		}
		if diff := cmp.Diff(step.want, last, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.EquateEmpty()); diff != "" || !l.until.Equal(until) {
			t.Errorf("%s: until %v, state (-want +got):\n%s", step.name, l.until, diff)
		}
	}
}
