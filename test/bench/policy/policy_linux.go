// SPDX-License-Identifier: Apache-2.0

// Package policy measures how long policy takes to be in force: the nftables renderer with the kernel
// behind it, beside one bare netlink commit and beside `nft -f`, in turns.
package policy

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os/exec"
	"runtime/debug"
	"strings"
	"time"

	"github.com/heliograph-dev/heliograph/felix/nftpolicy"
	"github.com/heliograph-dev/heliograph/policy"
	"github.com/heliograph-dev/heliograph/test/bench/sandbox"
	"github.com/heliograph-dev/heliograph/test/bench/table"
)

const (
	members  = 10000
	bulk     = 100000
	policies = 10000
	few      = 1000

	elementRounds = 500
	nftRounds     = 20
	bulkRounds    = 7
	loadRounds    = 3
)

type bench struct {
	ctx    context.Context
	kernel *nftpolicy.Kernel
}

// Measure runs the benchmark. It needs to be inside of a sandbox.
func Measure(ctx context.Context) ([]table.Table, error) {
	kernel, err := nftpolicy.Open()
	if err != nil {
		return nil, err
	}
	defer kernel.Close() //nolint:errcheck // nothing is left to do
	b := &bench{ctx, kernel}
	t := table.Table{
		Title: "Policy in force",
		Note: fmt.Sprintf("From the change of the state to the kernel's acknowledgement, beside one prepared netlink batch and beside `nft -f` of the same change, in turns (%d, with nft %d). Medians; the ratio is of turns next to each other.",
			elementRounds, nftRounds),
	}
	for _, measure := range []func() ([]table.Row, error){b.element, b.block, b.bulk, b.load} {
		rows, err := measure()
		if err != nil {
			return nil, err
		}
		t.Rows = append(t.Rows, rows...)
		if err := sandbox.Run("nft", "flush", "ruleset"); err != nil {
			return nil, err
		}
	}
	return []table.Table{t}, nil
}

// driver returns a driver with a state in force.
func (b *bench) driver(s *policy.State) (*nftpolicy.Table, error) {
	d := nftpolicy.New(b.kernel, slog.New(slog.DiscardHandler))
	return d, b.change(d, s.Delta())
}

func (b *bench) change(d *nftpolicy.Table, delta policy.Delta) error {
	d.Update(delta)
	return d.Apply(b.ctx)
}

// element is a pod that joins and leaves a set.
func (b *bench) element() ([]table.Row, error) {
	s := policy.NewState()
	s.Sets["pods"] = addresses(members)
	allow(s, "web", policy.Peer{Within: []policy.Addresses{{Sets: []policy.SetID{"pods"}}}})
	d, err := b.driver(s)
	if err != nil {
		return nil, err
	}
	if err := nft(bareTable("", members)); err != nil {
		return nil, err
	}
	one := netip.MustParseAddr("172.16.0.1")
	yard, err := newBare("s", one)
	if err != nil {
		return nil, err
	}
	defer yard.close()
	member := []policy.Member{{Prefix: netip.PrefixFrom(one, 32)}}
	ours := func(in bool) error {
		c := policy.SetChange{ID: "pods", Op: policy.Changed, Add: member}
		if !in {
			c.Add, c.Remove = nil, member
		}
		return b.change(d, policy.Delta{Sets: []policy.SetChange{c}})
	}
	bare := func(in bool) error {
		if in {
			return yard.commit(yard.add)
		}
		return yard.commit(yard.del)
	}
	us, them, err := turns(elementRounds, ours, bare)
	if err != nil {
		return nil, err
	}
	us2, nfts, err := turns(nftRounds, ours, throughNFT("s", one.String()))
	if err != nil {
		return nil, err
	}
	what := fmt.Sprintf("a pod joins or leaves a set of %d", members)
	return []table.Row{row(what, us, "one bare commit", them, 5), row(what, us2, "`nft -f`", nfts, 1./50)}, nil
}

// block is a network in and out of the many of a rule.
func (b *bench) block() ([]table.Row, error) {
	list := networks(members)
	more := append(append(append([]policy.Net{}, list[:members/2]...), policy.Net{CIDR: netip.MustParsePrefix("172.16.0.0/24")}), list[members/2:]...)
	s := policy.NewState()
	versions := map[bool]*policy.Policy{}
	for in, nets := range map[bool][]policy.Net{false: list, true: more} {
		versions[in] = allow(s, "blocks", policy.Peer{Within: []policy.Addresses{{Nets: nets}}})
	}
	s.Policies[versions[false].ID] = versions[false]
	d, err := b.driver(s)
	if err != nil {
		return nil, err
	}
	if err := nft(bareTable("flags interval;", members)); err != nil {
		return nil, err
	}
	ours := func(in bool) error {
		p := versions[in]
		return b.change(d, policy.Delta{Policies: []policy.PolicyChange{{ID: p.ID, Op: policy.Changed, Policy: p}}})
	}
	us, nfts, err := turns(nftRounds, ours, throughNFT("s", "172.16.0.0/24"))
	if err != nil {
		return nil, err
	}
	return []table.Row{row(fmt.Sprintf("an ipBlock in or out of %d", members), us, "`nft -f`", nfts, 1./20)}, nil
}

// bulk is a large set from nothing.
func (b *bench) bulk() ([]table.Row, error) {
	s := policy.NewState()
	s.Sets["pods"] = addresses(bulk)
	allow(s, "web", policy.Peer{Within: []policy.Addresses{{Sets: []policy.SetID{"pods"}}}})
	delta, text := s.Delta(), bareTable("", bulk)
	var us, them []time.Duration
	for range bulkRounds {
		d, err := b.driver(policy.NewState())
		if err != nil {
			return nil, err
		}
		t, err := timed(func() error { return b.change(d, delta) })
		if err != nil {
			return nil, err
		}
		us = append(us, t)
		if t, err = timed(func() error { return nft(text) }); err != nil {
			return nil, err
		}
		them = append(them, t)
		if err := nft("flush ruleset"); err != nil {
			return nil, err
		}
	}
	return []table.Row{row(fmt.Sprintf("%d members in bulk", bulk), us, "`nft -f`", them, 0.7)}, nil
}

// load is a node that starts with policies: a few beside nft, which takes minutes for many, and many
// beside the few.
func (b *bench) load() ([]table.Row, error) {
	var us, them, large []time.Duration
	for range loadRounds {
		t, err := b.start(many(few))
		if err != nil {
			return nil, err
		}
		us = append(us, t)
		text := "flush ruleset;\n" + written(few)
		if t, err = timed(func() error { return nft(text) }); err != nil {
			return nil, err
		}
		them = append(them, t)
		if t, err = b.start(many(policies)); err != nil {
			return nil, err
		}
		large = append(large, t)
	}
	s := many(policies)
	d, err := b.driver(s)
	if err != nil {
		return nil, err
	}
	changes, err := b.changes(d, s)
	if err != nil {
		return nil, err
	}
	return append([]table.Row{
		row(fmt.Sprintf("%d policies from nothing", few), us, "`nft -f`", them, 1),
		row(fmt.Sprintf("%d policies from nothing", policies), large, fmt.Sprintf("%d", few), us, 1.5*policies/few),
	}, changes...), nil
}

// start times a node that begins with nothing in its kernel, nor in its memory: what this process has used
// before would make a small start cheaper than it is, and a large one less so.
func (b *bench) start(s *policy.State) (time.Duration, error) {
	if err := nft("flush ruleset"); err != nil {
		return 0, err
	}
	delta := s.Delta()
	debug.FreeOSMemory()
	return timed(func() error {
		return b.change(nftpolicy.New(b.kernel, slog.New(slog.DiscardHandler)), delta)
	})
}

// changes are those that a chain takes part in: the kernel checks all that packets may meet.
func (b *bench) changes(d *nftpolicy.Table, s *policy.State) ([]table.Row, error) {
	var id policy.PolicyID
	for id = range s.Policies {
		break
	}
	versions := map[bool]*policy.Policy{false: s.Policies[id]}
	changed := *versions[false]
	changed.Ingress = append([]policy.Rule{}, changed.Ingress...)
	changed.Ingress[0].Match.Transport = []policy.Transport{{Protocol: policy.UDP}}
	versions[true] = &changed
	ours := func(in bool) error {
		p := versions[in]
		return b.change(d, policy.Delta{Policies: []policy.PolicyChange{{ID: id, Op: policy.Changed, Policy: p}}})
	}
	theirs := func(in bool) error {
		if in {
			return nft("add rule inet heliograph-policy output ip daddr 192.0.2.1 drop")
		}
		return nft("flush chain inet heliograph-policy output")
	}
	us, them, err := turns(nftRounds, ours, theirs)
	if err != nil {
		return nil, err
	}
	return []table.Row{row(fmt.Sprintf("a policy of %d changes", policies), us, "`nft -f` of one rule", them, 0)}, nil
}

// turns times both sides, each in and out.
func turns(rounds int, ours, theirs func(in bool) error) (us, them []time.Duration, err error) {
	for range rounds {
		for _, in := range []bool{true, false} {
			t, err := timed(func() error { return ours(in) })
			if err != nil {
				return nil, nil, err
			}
			us = append(us, t)
			if t, err = timed(func() error { return theirs(in) }); err != nil {
				return nil, nil, err
			}
			them = append(them, t)
		}
	}
	return us, them, nil
}

func timed(f func() error) (time.Duration, error) {
	start := time.Now()
	err := f()
	return time.Since(start), err
}

func row(what string, us []time.Duration, beside string, them []time.Duration, most float64) table.Row {
	return table.Row{
		What: what, Ours: micros(us), Beside: beside, Theirs: micros(them),
		Ratio: table.MedianRatio(us, them), Target: table.AtMost(most),
	}
}

func micros(d []time.Duration) string {
	m := table.Median(d)
	if m < time.Millisecond {
		return fmt.Sprintf("%.1f µs", float64(m.Nanoseconds())/1000)
	}
	return table.Millis(m)
}

func throughNFT(set, element string) func(in bool) error {
	return func(in bool) error {
		verb := map[bool]string{true: "add", false: "delete"}[in]
		return nft(fmt.Sprintf("%s element inet bare %s { %s }", verb, set, element))
	}
}

func nft(text string) error {
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nft -f: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// bareTable is a table inet bare with one set of as many elements: addresses, or with flags networks.
func bareTable(flags string, n int) string {
	elements := make([]string, n)
	for i := range elements {
		if elements[i] = address(i).String(); flags != "" {
			elements[i] = network(i).String()
		}
	}
	return "add table inet bare; delete table inet bare; table inet bare { set s { type ipv4_addr; " + flags +
		" elements = { " + strings.Join(elements, ", ") + " }; }; }"
}

func address(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
}

func network(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10 + byte(i>>15), byte(i >> 7), byte(i << 1), 0}), 24)
}

func addresses(n int) *policy.Set {
	s := &policy.Set{Kind: policy.AddressSet, Members: make(map[policy.Member]struct{}, n)}
	for i := range n {
		s.Members[policy.Member{Prefix: netip.PrefixFrom(address(i), 32)}] = struct{}{}
	}
	return s
}

func networks(n int) []policy.Net {
	out := make([]policy.Net, n)
	for i := range out {
		out[i].CIDR = network(i)
	}
	return out
}

// allow adds a policy of one rule, and a pod that it applies to.
func allow(s *policy.State, name string, from policy.Peer) *policy.Policy {
	id := policy.PolicyID{Namespace: "bench", Name: name}
	s.Policies[id] = &policy.Policy{ID: id, Ingress: []policy.Rule{{
		ID: policy.RuleID{Policy: id}, Action: policy.Allow,
		Match: policy.Match{Source: from, Transport: []policy.Transport{{
			Protocol: policy.TCP, DestinationPorts: policy.Ports{Ranges: []policy.PortRange{{First: 80, Last: 80}, {First: 443, Last: 443}}},
		}}},
	}}}
	pod(s, name, len(s.Endpoints), id)
	return s.Policies[id]
}

func pod(s *policy.State, name string, i int, ids ...policy.PolicyID) {
	e := policy.EndpointID{Namespace: "bench", Name: name}
	if s.Endpoints[e] != nil {
		return
	}
	s.Endpoints[e] = &policy.Endpoint{
		ID: e, Device: fmt.Sprintf("hel%011x", i), Egress: policy.Chain{Default: policy.Allow},
		Ingress: policy.Chain{Default: policy.Allow, Tiers: []policy.Tier{{Name: policy.DefaultTier, Policies: ids, Default: policy.Deny}}},
	}
}

// many is n policies, each with a set of its own of two pods and both families, spread over 100 pods.
func many(n int) *policy.State {
	s := policy.NewState()
	pods := make([][]policy.PolicyID, 100)
	for i := range n {
		set := policy.SetID(fmt.Sprintf("pods(app == '%d')", i))
		s.Sets[set] = &policy.Set{Kind: policy.AddressSet, Members: map[policy.Member]struct{}{}}
		for j := range 2 {
			a6 := netip.AddrFrom16([16]byte{0xfd, 13: byte((i + j) >> 16), 14: byte((i + j) >> 8), 15: byte(i + j)})
			s.Sets[set].Members[policy.Member{Prefix: netip.PrefixFrom(address(i+j), 32)}] = struct{}{}
			s.Sets[set].Members[policy.Member{Prefix: netip.PrefixFrom(a6, 128)}] = struct{}{}
		}
		one := policy.NewState()
		p := allow(one, fmt.Sprint("policy-", i), policy.Peer{Within: []policy.Addresses{{Sets: []policy.SetID{set}}}})
		s.Policies[p.ID] = p
		pods[i%len(pods)] = append(pods[i%len(pods)], p.ID)
	}
	for i, ids := range pods {
		pod(s, fmt.Sprint("pod-", i), i, ids...)
	}
	return s
}

// written is the same as people would write it for nft: two sets and a chain for each policy.
func written(n int) string {
	var b strings.Builder
	b.WriteString("table inet written {\n")
	for i := range n {
		fmt.Fprintf(&b, "set a%d { type ipv4_addr; elements = { %s, %s }; }\n", i, address(i), address(i+1))
		fmt.Fprintf(&b, "set b%d { type ipv6_addr; elements = { fd00::%x, fd00::%x }; }\n", i, i, i+1)
		fmt.Fprintf(&b, "chain p%d {\n ip saddr @a%d tcp dport { 80, 443 } counter accept\n ip6 saddr @b%d tcp dport { 80, 443 } counter accept\n}\n", i, i, i)
	}
	var elements []string
	for pod := range 100 {
		fmt.Fprintf(&b, "chain e%d {\n", pod)
		for i := pod; i < n; i += 100 {
			fmt.Fprintf(&b, "jump p%d\n", i)
		}
		b.WriteString("counter drop\n}\n")
		elements = append(elements, fmt.Sprintf("hel%011x : goto e%d", pod, pod))
	}
	fmt.Fprintf(&b, "chain forward { type filter hook forward priority 1; ct state established accept; oifname vmap { %s }; }\n}\n", strings.Join(elements, ", "))
	return b.String()
}
