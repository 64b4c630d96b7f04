// SPDX-License-Identifier: Apache-2.0

package conntrack

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/heliograph-dev/heliograph/internal/nettest"
)

func TestKernel(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		h, err := Open()
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		flow(t, h, "10.244.1.5", "192.0.2.1", "192.0.2.1", "10.244.1.5") // the pod to outside
		flow(t, h, "192.0.2.2", "10.244.1.5", "10.244.1.5", "192.0.2.2") // from outside to the pod
		flow(t, h, "192.0.2.3", "10.96.0.1", "10.244.1.5", "192.0.2.3")  // by way of a service
		flow(t, h, "10.244.1.5", "192.0.2.4", "192.0.2.4", "192.0.2.99") // masqueraded
		flow(t, h, "10.244.1.55", "192.0.2.5", "192.0.2.5", "10.244.1.55")
		flow(t, h, "fd00::5", "2001:db8::1", "2001:db8::1", "fd00::5")
		table := New(h)
		for _, c := range []struct {
			addr string
			want int
		}{{"10.244.1.5", 4}, {"10.244.1.5", 0}, {"fd00::5", 1}, {"fd00::5", 0}} {
			if n, err := table.DeleteByIP(context.Background(), netip.MustParseAddr(c.addr)); n != c.want || err != nil {
				t.Errorf("DeleteByIP(%s) = %d, %v; want %d", c.addr, n, err, c.want)
			}
		}
		left, err := h.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
		if err != nil || len(left) != 1 || left[0].Forward.SrcIP.String() != "10.244.1.55" {
			t.Errorf("left = %v, %v; want that of 10.244.1.55", left, err)
		}
	})
}

var port uint16 = 1000

func flow(t *testing.T, h *netlink.Handle, src, dst, replySrc, replyDst string) {
	t.Helper()
	port++
	family := netlink.InetFamily(unix.AF_INET)
	if strings.Contains(src, ":") {
		family = unix.AF_INET6
	}
	err := h.ConntrackCreate(netlink.ConntrackTable, family, &netlink.ConntrackFlow{
		FamilyType: uint8(family),
		Forward:    netlink.IPTuple{SrcIP: netip.MustParseAddr(src).AsSlice(), DstIP: netip.MustParseAddr(dst).AsSlice(), SrcPort: port, DstPort: 53, Protocol: unix.IPPROTO_UDP},
		Reverse:    netlink.IPTuple{SrcIP: netip.MustParseAddr(replySrc).AsSlice(), DstIP: netip.MustParseAddr(replyDst).AsSlice(), SrcPort: 53, DstPort: port, Protocol: unix.IPPROTO_UDP},
		TimeOut:    100,
	})
	if err != nil {
		t.Fatal(err)
	}
}

// fake answers with one error after the other.
type fake struct{ errs []error }

func (f *fake) ConntrackDeleteFilters(netlink.ConntrackTableType, netlink.InetFamily, ...netlink.CustomConntrackFilter) (uint, error) {
	err := f.errs[0]
	f.errs = f.errs[1:]
	return 2, err
}

func TestFaults(t *testing.T) {
	for _, c := range []struct {
		name string
		errs []error
		want int
		err  error
	}{
		{"reads again after an interrupted dump", []error{netlink.ErrDumpInterrupted, nil}, 4, nil},
		{"returns the cause", []error{syscall.ENOBUFS}, 2, syscall.ENOBUFS},
	} {
		t.Run(c.name, func(t *testing.T) {
			n, err := New(&fake{c.errs}).DeleteByIP(context.Background(), netip.MustParseAddr("10.244.1.5"))
			if n != c.want || !errors.Is(err, c.err) {
				t.Errorf("DeleteByIP = %d, %v; want %d, %v", n, err, c.want, c.err)
			}
		})
	}
}
