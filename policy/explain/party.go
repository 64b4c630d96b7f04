// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heliograph-dev/heliograph/policy"
)

// party is pods of one owner that no policy can tell apart, before and after: they have the same chains, and
// are in the same sets and networks. So it is enough to ask for one of them. Or it is an
// address outside the cluster, which stands for others.
type party struct {
	pods     []int // of comparison.pods
	outside  string
	first    firstAddresses
	second   *firstAddresses // of another pod of the party, if there is one
	affected [2]bool         // by direction
	// named are the ports that tell packets apart, by direction: those of rules, and for ingress those that the
	// pods declare.
	named    [2][]pieceKey
	portsKey [2]string
}

// groupOf names a pod's owner: a Deployment where it is a ReplicaSet of one.
func groupOf(p *corev1.Pod) string {
	name := p.Name
	if owner := metav1.GetControllerOf(p); owner != nil {
		name = owner.Name
		if hash := p.Labels["pod-template-hash"]; hash != "" {
			name = strings.TrimSuffix(name, "-"+hash)
		}
	}
	return p.Namespace + "/" + name
}

// findParties sorts pods into parties, and adds what is outside.
func (c *comparison) findParties() {
	m := c.mark()
	named := namedPorts{of: map[string][]pieceKey{}}
	index := map[string]*party{}
	for i := range c.pods {
		p := &c.pods[i]
		key := p.group + "\x00" + m.signature(i) + fmt.Sprint(p.ports, p.affected)
		if known := index[key]; known != nil {
			known.pods = append(known.pods, i)
			if known.second == nil {
				second := addressesOf(p.after.IPs)
				known.second = &second
			}
			continue
		}
		n := &party{pods: []int{i}, first: addressesOf(p.after.IPs), affected: p.affected}
		for d := range n.named {
			n.named[d] = named.meet(c, p, policy.Direction(d))
		}
		n.named[policy.Ingress] = slices.Concat(n.named[policy.Ingress], p.ports)
		for d := range n.named {
			n.portsKey[d] = fmt.Sprint(n.named[d])
		}
		index[key] = n
		c.parties = append(c.parties, n)
	}
	c.parties = append(c.parties, c.outside(m)...)
}

// marks are what conditions can tell addresses by: of each pod the sets and networks that its addresses are in.
type marks struct {
	next     uint32
	of       [][]uint32 // by pod
	byIP     map[netip.Addr]int
	sorted   []netip.Addr
	prefixes map[netip.Prefix]struct{} // of rules and network sets
}

// mark goes through chains, sets and networks of both views.
func (c *comparison) mark() *marks {
	m := &marks{of: make([][]uint32, len(c.pods)), byIP: map[netip.Addr]int{}, prefixes: map[netip.Prefix]struct{}{}}
	c.markChains(m)
	slices.SortFunc(m.sorted, netip.Addr.Compare)
	for _, v := range []*View{c.before, c.after} {
		for _, s := range v.state.Sets {
			m.set(s)
		}
		for _, p := range v.state.Policies {
			eachNet(p, func(n policy.Net) {
				m.prefixes[n.CIDR] = struct{}{}
				for _, e := range n.Except {
					m.prefixes[e] = struct{}{}
				}
			})
		}
	}
	for prefix := range m.prefixes {
		m.next++
		m.within(prefix, m.next)
	}
	for i := range m.of {
		slices.Sort(m.of[i])
		m.of[i] = slices.Compact(m.of[i])
	}
	return m
}

// markChains marks pods of equal chains and families alike, and learns whose each address is.
func (c *comparison) markChains(m *marks) {
	chains := map[string]uint32{}
	for i := range c.pods {
		p := &c.pods[i]
		for _, ip := range p.after.IPs {
			if _, ok := m.byIP[ip]; !ok {
				m.byIP[ip] = i
				m.sorted = append(m.sorted, ip)
			}
		}
		key := families(p.after.IPs)
		for _, e := range []*policy.Endpoint{p.before, p.after} {
			key += fmt.Sprint(e.Unknown) + chainKey(e.Ingress) + chainKey(e.Egress)
		}
		if _, ok := chains[key]; !ok {
			m.next++
			chains[key] = m.next
		}
		m.of[i] = append(m.of[i], chains[key])
	}
}

func families(ips []netip.Addr) string {
	a := addressesOf(ips)
	return fmt.Sprint(a[0].IsValid(), a[1].IsValid(), len(ips))
}

// set marks the members of a set: those of a family alike, and for ports those of the same port. Networks in it
// are noted as those of rules are.
func (m *marks) set(s *policy.Set) {
	type like struct {
		is4      bool
		protocol policy.Protocol
		port     uint16
	}
	seen := map[like]uint32{}
	for member := range s.Members {
		l := like{member.Prefix.Addr().Is4(), member.Protocol, member.Port}
		if seen[l] == 0 {
			m.next++
			seen[l] = m.next
		}
		m.within(member.Prefix, seen[l])
		if m.foreign(member.Prefix) {
			m.prefixes[member.Prefix] = struct{}{}
		}
	}
}

// foreign says that a member of a set is no pod: a network set has such.
func (m *marks) foreign(p netip.Prefix) bool {
	_, pod := m.byIP[p.Addr()]
	return !p.IsSingleIP() || !pod
}

// within marks the pods with an address in a prefix.
func (m *marks) within(p netip.Prefix, mark uint32) {
	if p.IsSingleIP() {
		if i, ok := m.byIP[p.Addr()]; ok {
			m.of[i] = append(m.of[i], mark)
		}
		return
	}
	from, _ := slices.BinarySearchFunc(m.sorted, p.Masked().Addr(), netip.Addr.Compare)
	for _, ip := range m.sorted[from:] {
		if !p.Contains(ip) {
			return
		}
		i := m.byIP[ip]
		m.of[i] = append(m.of[i], mark)
	}
}

func (m *marks) signature(pod int) string {
	b := make([]byte, 0, 4*len(m.of[pod]))
	for _, mark := range m.of[pod] {
		b = binary.BigEndian.AppendUint32(b, mark)
	}
	return string(b)
}

func eachNet(p *policy.Policy, visit func(policy.Net)) {
	for _, d := range []policy.Direction{policy.Ingress, policy.Egress} {
		for i := range p.Rules(d) {
			m := &p.Rules(d)[i].Match
			for _, peer := range []*policy.Peer{&m.Source, &m.Destination} {
				for _, a := range append(slices.Clip(peer.Within), peer.Outside) {
					for _, n := range a.Nets {
						visit(n)
					}
				}
			}
		}
	}
}

// maxOutside is how many addresses outside the cluster are looked at, of each family.
const maxOutside = 32

// outside returns a party for an address that no network of a rule is about, and one for each network, and
// each exception, of the policies that changed or that affected pods have.
func (c *comparison) outside(m *marks) []*party {
	var out []*party
	seen := map[string]bool{}
	add := func(ip netip.Addr, name string) {
		if len(seen) >= 2*maxOutside {
			c.outsideLeftOut++
			return
		}
		var in []string
		for p := range m.prefixes {
			if p.Contains(ip) {
				in = append(in, p.String())
			}
		}
		slices.Sort(in)
		key := fmt.Sprint(ip.Is4(), in)
		if !ip.IsValid() || seen[key] {
			return
		}
		seen[key] = true
		out = append(out, &party{outside: name, first: addressesOf([]netip.Addr{ip})})
	}
	both := &party{outside: "outside the cluster"}
	for f, texts := range [][]string{{"203.0.113.77", "198.51.100.77", "192.0.2.77", "8.8.8.8"}, {"2001:db8:ffff::77", "2001:4860:4860::8888", "3fff::77"}} {
		both.first[f] = c.leastNamed(m, parseIPs(texts))
		add(both.first[f], "")
	}
	out = []*party{both}
	for _, n := range c.netsOfAffected(m) {
		add(c.free(n.CIDR, n.Except), m.nameOf(n))
		for _, e := range n.Except {
			add(c.free(e, nil), m.nameOf(policy.Net{CIDR: e}))
		}
	}
	return out
}

// nameOf is a network, as far as it is outside the cluster.
func (m *marks) nameOf(n policy.Net) string {
	if slices.ContainsFunc(m.sorted, n.CIDR.Contains) {
		return n.String() + " (but pods)"
	}
	return n.String()
}

// leastNamed is the address that the fewest networks of rules hold.
func (c *comparison) leastNamed(m *marks, ips []netip.Addr) netip.Addr {
	return slices.MinFunc(ips, func(a, b netip.Addr) int {
		count := func(ip netip.Addr) (n int) {
			for p := range m.prefixes {
				if p.Contains(ip) {
					n++
				}
			}
			return n
		}
		return cmp.Compare(count(a), count(b))
	})
}

// netsOfAffected are the networks in the rules of policies that apply to affected pods, and one, of each
// family, of each network set that these name, sorted.
func (c *comparison) netsOfAffected(m *marks) []policy.Net {
	var nets []policy.Net
	for _, view := range []*View{c.before, c.after} {
		sets := map[policy.SetID]bool{}
		for id := range c.policiesOfAffected(view) {
			pol := view.state.Policies[id]
			if pol == nil {
				continue
			}
			eachNet(pol, func(n policy.Net) { nets = append(nets, n) })
			for set := range pol.Sets {
				sets[set] = true
			}
		}
		for set := range sets {
			nets = append(nets, m.foreigners(view.state.Sets[set])...)
		}
	}
	slices.SortFunc(nets, func(a, b policy.Net) int {
		return cmp.Or(a.CIDR.Compare(b.CIDR), cmp.Compare(a.String(), b.String()))
	})
	return slices.CompactFunc(nets, policy.Net.Equal)
}

func (c *comparison) policiesOfAffected(v *View) map[policy.PolicyID]bool {
	out := map[policy.PolicyID]bool{}
	for i := range c.pods {
		p := &c.pods[i]
		for d, affected := range p.affected {
			if !affected {
				continue
			}
			for _, t := range v.endpointChain(p.id, policy.Direction(d)).Tiers {
				for _, id := range t.Policies {
					out[id] = true
				}
			}
		}
	}
	return out
}

// foreigners are the least members of a set that are no pods, one of each family.
func (m *marks) foreigners(s *policy.Set) (out []policy.Net) {
	if s == nil || s.Kind != policy.AddressSet {
		return nil
	}
	var least [2]netip.Prefix
	for member := range s.Members {
		f := 0
		if member.Prefix.Addr().Is6() {
			f = 1
		}
		if m.foreign(member.Prefix) && (!least[f].IsValid() || member.Prefix.Compare(least[f]) < 0) {
			least[f] = member.Prefix
		}
	}
	for _, p := range least {
		if p.IsValid() {
			out = append(out, policy.Net{CIDR: p})
		}
	}
	return out
}

func (v *View) endpointChain(id policy.EndpointID, d policy.Direction) policy.Chain {
	return v.state.Endpoints[id].Chain(d)
}

// free finds an address of a network that is no pod's and in no exception; the zero one if that is not easy.
func (c *comparison) free(p netip.Prefix, except []netip.Prefix) netip.Addr {
	ip := p.Masked().Addr()
	if !p.IsSingleIP() {
		ip = ip.Next()
	}
	const tries = 4096
	for range tries {
		if !ip.IsValid() || !p.Contains(ip) {
			break
		}
		at := slices.IndexFunc(except, func(e netip.Prefix) bool { return e.Contains(ip) })
		if at < 0 && c.after.byIP[ip] == nil {
			return ip
		}
		if at >= 0 {
			ip = last(except[at])
		}
		ip = ip.Next()
	}
	return netip.Addr{}
}

// last is a prefix's last address.
func last(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	ip, _ := netip.AddrFromSlice(b)
	return ip
}

// groups say who the parties are: everybody, whole namespaces, owners.
func (c *comparison) groups(s partySet) []Group {
	var pods []int
	var out []Group
	for _, i := range s {
		if p := c.parties[i]; p.outside != "" {
			out = append(out, Group{Name: p.outside})
		} else {
			pods = append(pods, p.pods...)
		}
	}
	slices.Sort(pods)
	if len(pods) == len(c.pods) {
		return append([]Group{{Name: "all pods", Pods: len(pods), Of: len(pods)}}, out...)
	}
	inNamespace := map[string]int{}
	for _, i := range pods {
		inNamespace[c.pods[i].id.Namespace]++
	}
	at := map[string]int{}
	var inside []Group
	for _, i := range pods {
		p := &c.pods[i]
		name, of := p.group, c.ofGroup[p.group]
		// A namespace of one owner is better called by that.
		if n := c.ofNamespace[p.id.Namespace]; inNamespace[p.id.Namespace] == n && n > of {
			name, of = "all pods of "+p.id.Namespace, n
		}
		g, ok := at[name]
		if !ok {
			g = len(inside)
			at[name] = g
			inside = append(inside, Group{Name: name, Of: of})
		}
		inside[g].add(p.id.Name)
	}
	for i := range inside {
		if g := &inside[i]; g.Pods == g.Of && g.Of > 1 {
			g.Names = nil
		}
	}
	slices.SortFunc(inside, compareGroups)
	return append(inside, out...)
}

// fewNames of a group are told.
const fewNames = 5

func (g *Group) add(pod string) {
	g.Pods++
	if len(g.Names) < fewNames {
		g.Names = append(g.Names, pod)
	}
}
