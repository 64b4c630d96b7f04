// SPDX-License-Identifier: Apache-2.0

// Package podnet makes, checks and deletes the network interface of a pod: a veth pair whose one
// end has the name the runtime asked for and whose other end is a "hel…" device of the node.
//
//	pod                                          node
//	┌────────────────────────────┐              ┌──────────────────────────────────┐
//	│ eth0  10.244.0.5/32        │     veth     │ hel0123456789a                   │
//	│       fd00:244::5/128      ├──────────────┤ 02:68:65:6c:00:01                │
//	│ default via 169.254.1.1    │              │ 10.244.0.5   lladdr … permanent  │
//	│ default via fe80::68:…:1   │              │ fd00:244::5  lladdr … permanent  │
//	│ both lladdr …:01 permanent │              └──────────────────────────────────┘
//	└────────────────────────────┘               the routes to the pod are the agent's
//
// The gateway exists as a neighbour entry alone: whatever the pod sends goes to the node's end, and
// nobody answers ARP or neighbour discovery for it, nor must. The entries on the node's side spare
// the first packet a resolution, which for IPv6 could begin only when duplicate address detection
// on the node's end has ended, a second or two after the pod started; if somebody flushes them,
// resolution works.
//
// The package owns these devices and what stands on them. It touches no route, rule or filter of
// the node. It works through a netlink socket of the pod's namespace, so it needs CAP_NET_ADMIN,
// and neither CAP_SYS_ADMIN nor the namespace's file.
package podnet

import (
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"strings"

	"github.com/heliograph-dev/heliograph/cni"
	"github.com/heliograph-dev/heliograph/felix/desired"
)

// HostMAC is the address of the node's end of every pair. It is the same everywhere, so that the
// gateways are too, and a pod keeps its neighbour entries whatever happens to the node's end.
var HostMAC = desired.MAC{0x02, 0x68, 0x65, 0x6c, 0x00, 0x01}

// Gateway4 and Gateway6 are a pod's gateways. Gateway6 is what RFC 4291 Appendix A makes of HostMAC.
var (
	Gateway4 = netip.AddrFrom4([4]byte{169, 254, 1, 1})
	Gateway6 = netip.AddrFrom16([16]byte{0xfe, 0x80, 8: 0x00, 9: 0x68, 10: 0x65, 11: 0xff, 12: 0xfe, 13: 0x6c, 14: 0x00, 15: 0x01})
)

// Interface is what a pod's interface should be.
type Interface struct {
	Attachment cni.Attachment
	Pod        cni.Pod       // for the alias of the node's end only
	MTU        int           // bytes; 0: the kernel's default
	Addresses  [2]netip.Addr // IPv4, IPv6; one may be invalid
}

// Ends are the two ends of a pair as the kernel has them.
type Ends struct {
	Host, Pod cni.Interface
}

// Found is a device of the node that says, in its alias, which attachment it is of.
type Found struct {
	Device     string
	Attachment cni.Attachment
	Pod        cni.Pod // empty if the alias had no room for it; never with a UID
	Addresses  [2]netip.Addr
}

// HostDevice is the name of the node's end of an attachment's pair.
func HostDevice(a cni.Attachment) string {
	sum := digest(a)
	return desired.WorkloadPrefix + hex.EncodeToString(sum[:6])[:11]
}

// IsHostDevice says whether a name is one that HostDevice makes.
func IsHostDevice(name string) bool {
	rest, ok := strings.CutPrefix(name, desired.WorkloadPrefix)
	return ok && len(rest) == 11 && strings.Trim(rest, "0123456789abcdef") == ""
}

// Sysctls is what the node's end of a pair needs below /proc/sys/net. The agent writes them, since
// the directory may be mounted elsewhere.
func Sysctls(device string) []desired.Sysctl {
	return []desired.Sysctl{
		// A pod must not configure its node by router advertisements or redirects.
		{Path: "ipv6/conf/" + device + "/accept_ra", Value: "0"},
		{Path: "ipv6/conf/" + device + "/accept_redirects", Value: "0"},
		{Path: "ipv4/conf/" + device + "/accept_redirects", Value: "0"},
		// The way to a pod is always its device, so the strict check costs no legal packet, and it stands
		// even while somebody reloads the firewall.
		{Path: "ipv4/conf/" + device + "/rp_filter", Value: "1"},
	}
}

// podMAC is the address of the pod's end: locally administered, unicast, the same whenever the
// interface of this attachment is made.
func podMAC(a cni.Attachment) desired.MAC {
	sum := digest(a)
	mac := desired.MAC(sum[8:14])
	mac[0] = mac[0]&^1 | 2
	return mac
}

func digest(a cni.Attachment) [sha256.Size]byte {
	return sha256.Sum256([]byte(a.ContainerID + "/" + a.IfName))
}

const aliasPrefix = "heliograph: "

// maxAlias is the longest alias, in bytes: the kernel's IFALIASZ with its terminating zero.
const maxAlias = 255

// alias is what a fresh process without memory reads back from the node's end: all that the
// allocator must know, and the pod's name as far as there is room for the whole of it.
func (i Interface) alias() string {
	addresses := make([]string, 0, 2)
	for _, a := range i.Addresses {
		if a.IsValid() {
			addresses = append(addresses, a.String())
		}
	}
	s := aliasPrefix + i.Attachment.ContainerID + "/" + i.Attachment.IfName + " " + strings.Join(addresses, ",")
	if i.Pod.Name != "" {
		if whole := s + " " + i.Pod.Namespace + "/" + i.Pod.Name; len(whole) <= maxAlias {
			return whole
		}
	}
	return s
}

// parseAlias is alias backwards; false: not an alias of ours.
func parseAlias(device, alias string) (Found, bool) {
	f := Found{Device: device}
	rest, ok := strings.CutPrefix(alias, aliasPrefix)
	if !ok {
		return f, false
	}
	words := strings.Fields(rest)
	if len(words) < 2 {
		return f, false
	}
	if f.Attachment.ContainerID, f.Attachment.IfName, ok = strings.Cut(words[0], "/"); !ok {
		return f, false
	}
	for s := range strings.SplitSeq(words[1], ",") {
		a, err := netip.ParseAddr(s)
		if err != nil || a.Is4In6() {
			return f, false
		}
		f.Addresses[family(a)] = a
	}
	if len(words) > 2 {
		f.Pod.Namespace, f.Pod.Name, _ = strings.Cut(words[2], "/")
	}
	return f, HostDevice(f.Attachment) == device
}

// family is the index of an address in a pair of IPv4 and IPv6.
func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// gateway is the gateway of an address's family.
func gateway(a netip.Addr) netip.Addr {
	if a.Is4() {
		return Gateway4
	}
	return Gateway6
}
