package topology

import (
	"fmt"
	"strings"
)

// LinkScript is the input of `ip -batch` that makes all veth pairs, each end
// born in the network namespace of its host's process.
func (p Plan) LinkScript(pids map[string]int) string {
	var b strings.Builder
	for _, l := range p.Links {
		fmt.Fprintf(&b, "link add %s netns %d type veth peer name %s netns %d\n",
			l.A.Port, pids[l.A.Host], l.B.Port, pids[l.B.Host])
	}
	return b.String()
}

// Script is the input of `ip -batch` inside the host, after its links exist.
func (h Host) Script() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("link set lo up")
	if h.Bridge != nil {
		line("link add %s type bridge mcast_snooping 0", h.Bridge.Name)
		for _, a := range h.Bridge.Addrs {
			line("addr add %s dev %s", a, h.Bridge.Name)
		}
		line("link set %s up", h.Bridge.Name)
	}
	for _, p := range h.Ports {
		if p.Bridged {
			line("link set %s master %s", p.Name, h.Bridge.Name)
		}
		for _, a := range p.Addrs {
			line("addr add %s dev %s", a, p.Name)
		}
		line("link set %s up", p.Name)
	}
	for _, p := range h.Ports {
		for _, gw := range p.Gateways {
			line("route add default via %s dev %s", gw, p.Name)
		}
	}
	return b.String()
}

// Sysctls is the input of `sysctl -p -` inside the host, before its links exist:
// devices copy the defaults when they are born.
func (h Host) Sysctls() string {
	// Without duplicate address detection an address is usable at once; and
	// nobody on this ground sends router advertisements.
	out := []string{
		"net.ipv6.conf.all.accept_dad=0",
		"net.ipv6.conf.default.accept_dad=0",
		"net.ipv6.conf.all.accept_ra=0",
		"net.ipv6.conf.default.accept_ra=0",
	}
	if h.Kind != Control {
		out = append(out, "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
	}
	if h.IsRouter() {
		out = append(out, "net.ipv4.fib_multipath_hash_policy=1", "net.ipv6.fib_multipath_hash_policy=1")
	}
	return strings.Join(out, "\n") + "\n"
}
