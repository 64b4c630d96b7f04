// SPDX-License-Identifier: Apache-2.0

package felix

import (
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/heliograph-dev/heliograph/internal/nettest"
)

// A tunnel that is not wanted any more goes when all has left it: c is reached by VXLAN over IPv6, until it has
// an IPv4 address too. Its route moves in one message, the old tunnel is whole meanwhile and for a while after,
// and when it goes, no route feels it.
func TestUnwantedTunnelGoesLast(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		nettest.Cmd(t, "ip", "address", "add", "fd00:11::1/64", "dev", "up0", "nodad")
		internal := func(ips ...string) (out []corev1.NodeAddress) {
			for _, ip := range ips {
				out = append(out, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: ip})
			}
			return out
		}
		nodes := w.source.objects.Nodes
		nodes[0].Status.Addresses, nodes[2].Status.Addresses = internal("192.168.11.1", "fd00:11::1"), internal("fd00:12::3")
		w.start()
		w.inSync()
		w.sees(time.Second, true, "dev hel-vxlan6", "ip", "route", "show", "10.244.2.0/26")
		m := monitorKernel(t)
		w.source.set(true, func() {
			w.source.objects.Nodes = slices.Clone(nodes)
			w.source.objects.Nodes[2].Status.Addresses = internal("192.168.12.3", "fd00:12::3")
		})
		w.sees(patience, true, "via 192.168.12.3 dev hel-vxlan ", "ip", "route", "show", "10.244.2.0/26")
		for _, line := range m.drain() {
			if strings.HasPrefix(line, "Deleted id") {
				continue // the object of the old way, which nothing refers to any more
			}
			if strings.HasPrefix(line, "Deleted") && (strings.Contains(line, "hel-vxlan6") || strings.Contains(line, "10.244.2.0/26")) {
				t.Errorf("deleted before, or in order that, the path moved: %s", line)
			}
		}
		w.sees(time.Second, true, "PERMANENT", "ip", "neigh", "show", "dev", "hel-vxlan6")
		w.sees(time.Second, true, `"hel-vxlan6"`, "nft", "list", "set", "inet", "heliograph", "tunnels")

		w.sees(tunnelLinger+patience, false, "hel-vxlan6", "ip", "link", "show")
		w.sees(patience, false, `"hel-vxlan6"`, "nft", "list", "set", "inet", "heliograph", "tunnels")
		for _, line := range m.drain() {
			if strings.Contains(line, "10.244.2.0/26") {
				t.Errorf("the route felt that the tunnel went: %s", line)
			}
		}
	})
}
