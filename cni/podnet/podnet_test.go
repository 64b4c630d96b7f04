// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/heliograph-dev/heliograph/cni"
)

func TestAliasSurvivesTheKernelsLimit(t *testing.T) {
	i := Interface{
		Attachment: cni.Attachment{ContainerID: strings.Repeat("a", 64), IfName: "eth0"},
		Addresses:  [2]netip.Addr{netip.MustParseAddr("255.244.255.255"), netip.MustParseAddr("fd00:2444:4444:4444:4444:4444:4444:4444")},
	}
	for _, tc := range []struct {
		name    string
		in, out cni.Pod
	}{
		{"no pod", cni.Pod{}, cni.Pod{}},
		{"short", cni.Pod{Namespace: "default", Name: "web-0", UID: "u"}, cni.Pod{Namespace: "default", Name: "web-0"}},
		{"too long is left out whole", cni.Pod{Namespace: "default", Name: strings.Repeat("x", 253)}, cni.Pod{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			i.Pod = tc.in
			alias := i.alias()
			if len(alias) > 255 {
				t.Errorf("%d bytes", len(alias))
			}
			got, ok := parseAlias(HostDevice(i.Attachment), alias)
			want := Found{Device: HostDevice(i.Attachment), Attachment: i.Attachment, Pod: tc.out, Addresses: i.Addresses}
			if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); !ok || diff != "" {
				t.Errorf("ok %v (-want +got):\n%s", ok, diff)
			}
		})
	}
}

func TestGateway6IsTheEUI64OfHostMAC(t *testing.T) {
	m := HostMAC
	want := netip.AddrFrom16([16]byte{0xfe, 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]})
	if Gateway6 != want {
		t.Errorf("Gateway6 = %s, want %s", Gateway6, want)
	}
}

func TestHostDeviceNames(t *testing.T) {
	name := HostDevice(cni.Attachment{ContainerID: "c", IfName: "eth0"})
	if len(name) != 14 || !IsHostDevice(name) {
		t.Errorf("HostDevice = %q", name)
	}
	for _, other := range []string{"hel-vxlan", "hel-vxlan6", "hello", "eth0", "hel0123456789", "hel0123456789AB"} {
		if IsHostDevice(other) {
			t.Errorf("%q is taken for a pod's", other)
		}
	}
}
