// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/heliograph-dev/heliograph/felix/policytest"
	"github.com/heliograph-dev/heliograph/policy"
)

var both = []policy.Family{policy.IPv4, policy.IPv6}

func newTable(h Handle) *Table { return New(h, slog.New(slog.DiscardHandler)) }

func apply(t *testing.T, d *Table) {
	t.Helper()
	if err := d.Apply(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// compare checks that two hosts are alike.
func compare(t *testing.T, what string, want, got *host) {
	t.Helper()
	for _, f := range both {
		if diff := cmp.Diff(want.print(f), got.print(f)); diff != "" {
			t.Fatalf("%s: %s (-want +got):\n%s", what, f, diff)
		}
	}
	if diff := cmp.Diff(want.sets, got.sets, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
		t.Fatalf("%s: sets (-want +got):\n%s", what, diff)
	}
}

// canonical is a host as if every set were of the first generation. The hashes tell of generations, so
// they are left out.
func canonical(d *Table, h *host) *host {
	out := newHost()
	var names []string
	for id, ref := range d.refs {
		for _, f := range both {
			names = append(names, ref.name(id, f), setName(id, ref.kind, f))
		}
	}
	rename := strings.NewReplacer(names...)
	hash := regexp.MustCompile(`#[0-9a-f]{12}`)
	for f, table := range h.tables {
		for name, lines := range table {
			out.tables[f][name] = nil
			for _, l := range lines {
				out.tables[f][name] = append(out.tables[f][name], hash.ReplaceAllString(rename.Replace(l), "#"))
			}
		}
	}
	for name, s := range h.sets {
		out.sets[rename.Replace(name)] = s
	}
	return out
}

// TestIncrementalIsFresh: whatever the way, the host is as one that was told the last state alone.
func TestIncrementalIsFresh(t *testing.T) {
	for seed := range uint64(4) {
		h := newHost()
		d := newTable(h)
		last := policy.NewState()
		for i, s := range policytest.States(seed, 25) {
			if i%7 == 3 { // a restart: it finds what the last one has left
				d, last = newTable(h), policy.NewState()
			}
			d.Update(policytest.Diff(last, s))
			last = s
			if i%5 == 4 {
				continue // the next Apply makes two changes
			}
			apply(t, d)
			fresh := newHost()
			f := newTable(fresh)
			f.Update(s.Delta())
			apply(t, f)
			compare(t, fmt.Sprintf("seed %d, state %d", seed, i), canonical(f, fresh), canonical(d, h))
			h.log = nil
			d.QueueResync()
			apply(t, d)
			if want := []string{"list", "save", "save"}; !slices.Equal(h.log, want) {
				t.Fatalf("seed %d, state %d: a resync of what is right did %v", seed, i, h.log)
			}
		}
		if err := d.Delete(context.Background()); err != nil {
			t.Fatal(err)
		}
		compare(t, fmt.Sprintf("seed %d: after Delete", seed), newHost(), h)
	}
}

func member(s string) policy.Member { return policy.Member{Prefix: netip.MustParsePrefix(s)} }

// small is a pod that accepts TCP port 80 of clients, and nothing else.
func small() *policy.State {
	s := policy.NewState()
	id := policy.PolicyID{Namespace: "prod", Name: "web"}
	s.Sets["clients"] = &policy.Set{Members: map[policy.Member]struct{}{member("10.244.0.9/32"): {}, member("fd00:244::9/128"): {}}}
	s.Policies[id] = &policy.Policy{ID: id, Ingress: []policy.Rule{{
		ID: policy.RuleID{Policy: id}, Action: policy.Allow,
		Match: policy.Match{
			Source:    policy.Peer{Within: []policy.Addresses{{Sets: []policy.SetID{"clients"}}}},
			Transport: []policy.Transport{{Protocol: policy.TCP, DestinationPorts: policy.Ports{Ranges: []policy.PortRange{{First: 80, Last: 80}}}}},
		},
	}}}
	open := policy.Chain{Default: policy.Allow}
	pod := &policy.Endpoint{
		ID: policy.EndpointID{Namespace: "prod", Name: "web-1"}, Device: "hel00000000001", Egress: open,
		Ingress: policy.Chain{Default: policy.Allow, Tiers: []policy.Tier{{Name: policy.DefaultTier, Default: policy.Deny, Policies: []policy.PolicyID{id}}}},
	}
	s.Endpoints[pod.ID] = pod
	return s
}

// TestCost: what changes is as much as it should be.
func TestCost(t *testing.T) {
	h := newHost()
	d := newTable(h)
	d.Update(small().Delta())
	apply(t, d)
	id := policy.PolicyID{Namespace: "prod", Name: "web"}
	closed := *small().Policies[id]
	closed.Ingress = nil
	for _, tt := range []struct {
		name  string
		delta policy.Delta
		want  []string
	}{
		{"nothing", policy.Delta{}, nil},
		{"a pod joins a set", policy.Delta{Sets: []policy.SetChange{{ID: "clients", Op: policy.Changed, Add: []policy.Member{member("10.244.0.7/32")}}}}, []string{"add"}},
		{"a pod leaves a set", policy.Delta{Sets: []policy.SetChange{{ID: "clients", Op: policy.Changed, Remove: []policy.Member{member("10.244.0.7/32")}}}}, []string{"remove"}},
		{"a policy", policy.Delta{Policies: []policy.PolicyChange{{ID: id, Op: policy.Changed, Policy: &closed}}}, []string{"restore", "restore"}},
		{"a set", policy.Delta{Sets: []policy.SetChange{{ID: "new", Op: policy.Added, Add: []policy.Member{member("10.0.0.0/8")}}}}, []string{"create", "add", "create"}},
		{"no set", policy.Delta{Sets: []policy.SetChange{{ID: "new", Op: policy.Removed}}}, []string{"destroy", "destroy"}},
	} {
		h.log = nil
		d.Update(tt.delta)
		apply(t, d)
		if diff := cmp.Diff(tt.want, h.log); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

// TestOthersAreLeftAlone: chains, rules and sets of others stay as they are, whatever we do.
func TestOthersAreLeftAlone(t *testing.T) {
	theirs := func() *host {
		h := newHost()
		for _, f := range both {
			h.tables[f]["KUBE-FORWARD"] = []string{"-j ACCEPT"}
			h.tables[f]["FORWARD"] = []string{"-j KUBE-FORWARD", `-m comment --comment "drop HEL-FORWARD" -j DROP`}
		}
		h.sets["KUBE-CLUSTER-IP"] = Set{Members: map[policy.Member]struct{}{member("10.96.0.1/32"): {}}}
		return h
	}
	h := theirs()
	d := newTable(h)
	d.Update(small().Delta())
	apply(t, d)
	if got := h.tables[policy.IPv4]["FORWARD"]; len(got) != 3 || target(got[0]) != chainForward || got[1] != "-j KUBE-FORWARD" {
		t.Errorf("FORWARD = %q; want our jump before theirs", got)
	}
	if err := d.Delete(context.Background()); err != nil {
		t.Fatal(err)
	}
	compare(t, "after Delete", theirs(), h)
}

// TestDrift: what others do to what is ours is undone.
func TestDrift(t *testing.T) {
	want := newHost()
	first := newTable(want)
	first.Update(small().Delta())
	apply(t, first)
	web := policyChain(policy.PolicyID{Namespace: "prod", Name: "web"}, policy.Ingress)
	clients := setName("clients", policy.AddressSet, policy.IPv4)
	for _, tt := range []struct {
		name string
		harm func(h *host, table map[string][]string)
	}{
		{"a chain is emptied", func(_ *host, c map[string][]string) { c[web] = nil }},
		{"a line is added", func(_ *host, c map[string][]string) { c[web] = append(c[web], "-j ACCEPT") }},
		{"a line is another", func(_ *host, c map[string][]string) { c[treeTo][0] = "-j ACCEPT" }},
		{"a line moves", func(_ *host, c map[string][]string) { slices.Reverse(c[chainForward]) }},
		{"a chain is there", func(_ *host, c map[string][]string) { c[prefix+"x"] = []string{"-j ACCEPT"} }},
		{"the jump is gone", func(_ *host, c map[string][]string) { c["FORWARD"] = nil }},
		{"the jump is there twice", func(_ *host, c map[string][]string) { c["INPUT"] = append(c["INPUT"], c["INPUT"]...) }},
		{"all is flushed", func(h *host, _ map[string][]string) { h.tables = newHost().tables }},
		{"a member is there", func(h *host, _ map[string][]string) { h.sets[clients].Members[member("10.0.0.0/8")] = struct{}{} }},
		{"a member is gone", func(h *host, _ map[string][]string) { delete(h.sets[clients].Members, member("10.244.0.9/32")) }},
		{"a set is there", func(h *host, _ map[string][]string) { h.sets[prefix+"x"] = Set{Members: map[policy.Member]struct{}{}} }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost()
			d := newTable(h)
			d.Update(small().Delta())
			apply(t, d)
			tt.harm(h, h.tables[policy.IPv4])
			d.QueueResync()
			apply(t, d)
			compare(t, tt.name, want, h)
		})
	}
	t.Run("the jump is not the first", func(t *testing.T) {
		h := newHost()
		d := newTable(h)
		d.Update(small().Delta())
		apply(t, d)
		h.tables[policy.IPv6]["OUTPUT"] = slices.Insert(h.tables[policy.IPv6]["OUTPUT"], 0, "-j DOCKER")
		d.QueueResync()
		apply(t, d)
		if got := h.tables[policy.IPv6]["OUTPUT"]; len(got) != 2 || target(got[0]) != chainOutput || got[1] != "-j DOCKER" {
			t.Errorf("OUTPUT = %q", got)
		}
	})
}

// TestFaults: whatever fails, and whenever, the next Apply makes it right.
func TestFaults(t *testing.T) {
	const faults = 23 // one of so many operations fails
	states := policytest.States(3, 8)
	for at := range faults {
		h := newHost()
		d := newTable(h)
		last := policy.NewState()
		n, failed := 0, 0
		h.fail = func(op, _ string) error {
			if n++; n%faults != at {
				return nil
			}
			failed++
			if op == "restore" || op == "save" {
				return &RestoreError{Code: 4, Output: "Another app is currently holding the xtables lock."}
			}
			return syscall.ENOBUFS
		}
		for _, s := range states {
			d.Update(policytest.Diff(last, s))
			last = s
			for range 3 {
				if err := d.Apply(context.Background()); err == nil {
					break
				}
			}
		}
		h.fail = nil
		apply(t, d)
		want := newHost()
		f := newTable(want)
		f.Update(last.Delta())
		apply(t, f)
		compare(t, fmt.Sprintf("fault %d (%d times)", at, failed), canonical(f, want), canonical(d, h))
		if refused := d.Refused(); len(refused) > 0 {
			t.Errorf("fault %d: refused %v for a passing fault", at, refused)
		}
	}
}

// TestRefused: a policy that the kernel does not take drops, says so, and keeps no other one out. A later
// version of it is tried again.
func TestRefused(t *testing.T) {
	web, other := policy.PolicyID{Namespace: "prod", Name: "web"}, policy.PolicyID{Namespace: "prod", Name: "other"}
	for _, tt := range []struct {
		name string
		fail func(op, about string) error
	}{
		{"a rule", func(op, about string) error {
			if op == "restore" && strings.Contains(about, "-A "+policyChain(web, policy.Ingress)) && strings.Contains(about, "--dports 80 ") {
				return &RestoreError{Code: 2, Output: "no such match"}
			}
			return nil
		}},
		{"a rule of IPv6", func(op, about string) error {
			if op == "restore" && strings.Contains(about, setName("clients", policy.AddressSet, policy.IPv6)) {
				return &RestoreError{Code: 2, Output: "no such match"}
			}
			return nil
		}},
		{"a set", func(op, about string) error {
			if op == "create" && about == setName("clients", policy.AddressSet, policy.IPv6) {
				return errors.New("ipset error 4098")
			}
			return nil
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost()
			h.fail = tt.fail
			d := newTable(h)
			s := small()
			s.Policies[other] = &policy.Policy{ID: other, Ingress: []policy.Rule{{ID: policy.RuleID{Policy: other}, Action: policy.Allow}}}
			d.Update(s.Delta())
			apply(t, d)
			if r := d.Refused(); len(r) != 1 || r[web] == nil {
				t.Fatalf("refused %v; want prod/web", r)
			}
			for _, f := range both {
				if got := h.tables[f][policyChain(web, policy.Ingress)]; len(got) != 2 || target(got[1]) != "DROP" {
					t.Errorf("%s: the chain of the refused policy is %q", f, got)
				}
				if got := h.tables[f][policyChain(other, policy.Ingress)]; len(got) != 1 || target(got[0]) != chainAllow {
					t.Errorf("%s: the chain of the other policy is %q", f, got)
				}
			}
			mend(t, d, h, web)
		})
	}
}

// TestOneFamilyFails: what is wrong with IPv6 does not keep IPv4's rules out.
func TestOneFamilyFails(t *testing.T) {
	for _, op := range []string{"save", "restore"} {
		h := newHost()
		broken := true
		h.fail = func(o, about string) error {
			if broken && o == op && (about == policy.IPv6.String() || strings.Contains(about, "ipv6-icmp")) {
				return &RestoreError{Code: 3, Output: "cannot initialize ip6tables"}
			}
			return nil
		}
		d := newTable(h)
		d.Update(small().Delta())
		if err := d.Apply(context.Background()); err == nil || !strings.Contains(err.Error(), "IPv6 rules: ") {
			t.Errorf("%s: got %v, want one of IPv6", op, err)
		}
		if got := h.tables[policy.IPv4]["FORWARD"]; len(got) != 1 {
			t.Errorf("%s: FORWARD of IPv4 is %q", op, got)
		}
		broken = false
		apply(t, d)
		want := newHost()
		fresh := newTable(want)
		fresh.Update(small().Delta())
		apply(t, fresh)
		compare(t, op, want, h)
	}
}

var update = flag.Bool("update", false, "rewrite testdata")

// mend tries a refused policy again, in vain, and then gives it a version that the kernel takes.
func mend(t *testing.T, d *Table, h *host, web policy.PolicyID) {
	t.Helper()
	h.log = nil
	d.QueueResync()
	apply(t, d)
	if r := d.Refused(); len(r) != 1 || r[web] == nil || len(h.log) < 4 {
		t.Errorf("a resync does not try again: refused %v after %s", r, h.log)
	}
	good := *small().Policies[web]
	good.Ingress = nil
	d.Update(policy.Delta{Policies: []policy.PolicyChange{{ID: web, Op: policy.Changed, Policy: &good}}})
	apply(t, d)
	if r := d.Refused(); len(r) != 0 {
		t.Errorf("refused %v after it was mended", r)
	}
	if got := h.tables[policy.IPv4][policyChain(web, policy.Ingress)]; len(got) != 0 {
		t.Errorf("the chain of the mended policy is %q", got)
	}
}

// TestRefusedRecovers: what the kernel takes later is no longer refused.
func TestRefusedRecovers(t *testing.T) {
	h := newHost()
	broken := true
	h.fail = func(op, _ string) error {
		if broken && op == "create" {
			return errors.New("ipset error 4098")
		}
		return nil
	}
	d := newTable(h)
	d.Update(small().Delta())
	apply(t, d)
	if len(d.Refused()) != 1 {
		t.Fatalf("refused %v", d.Refused())
	}
	broken = false
	d.QueueResync()
	apply(t, d)
	if len(d.Refused()) != 0 {
		t.Errorf("refused %v", d.Refused())
	}
	want := newHost()
	fresh := newTable(want)
	fresh.Update(small().Delta())
	apply(t, fresh)
	compare(t, "after it recovered", want, h)
}

// TestAllRefused: if the kernel takes nothing at all, no policy is at fault, and none is looked for.
func TestAllRefused(t *testing.T) {
	h := newHost()
	h.fail = func(op, _ string) error {
		if op == "restore" {
			return &RestoreError{Code: 1, Output: "table `filter' is incompatible, use 'nft' tool."}
		}
		return nil
	}
	d := newTable(h)
	d.Update(policytest.States(1, 1)[0].Delta())
	if err := d.Apply(context.Background()); err == nil || len(d.Refused()) != 0 {
		t.Errorf("got %v, refused %v", err, d.Refused())
	}
	if n := strings.Count(strings.Join(h.log, " "), "restore"); n > 4 {
		t.Errorf("it took %d transactions", n)
	}
}

// TestParts: what is too large for one transaction goes in parts, by as few as are needed.
func TestParts(t *testing.T) {
	h := newHost()
	s := small()
	bad := policy.PolicyID{Namespace: "prod", Name: "p7"}
	for i := range 100 {
		id := policy.PolicyID{Namespace: "prod", Name: fmt.Sprint("p", i)}
		s.Policies[id] = &policy.Policy{ID: id, Ingress: []policy.Rule{{ID: policy.RuleID{Policy: id}, Action: policy.Allow}}}
	}
	h.fail = func(op, about string) error {
		if op == "restore" && (strings.Count(about, "\n:HEL-p") > 60 || strings.Contains(about, policyChain(bad, policy.Ingress)+" - ") && !strings.Contains(about, "NFLOG")) {
			return &RestoreError{Code: 1, Output: "Message too long"}
		}
		return nil
	}
	d := newTable(h)
	d.Update(s.Delta())
	apply(t, d)
	if r := d.Refused(); len(r) != 1 || r[bad] == nil {
		t.Errorf("refused %v; want p7", r)
	}
	if n := len(h.log); n > 40 {
		t.Errorf("it took %d operations", n)
	}
	for _, f := range both {
		if n := len(h.tables[f]); n < 100 {
			t.Errorf("%s: %d chains", f, n)
		}
	}
}

// TestNothingMixes: at no moment do rules of before meet members of after, or the other way round, if both
// change at once; be they of a selector or of a rule's own networks.
func TestNothingMixes(t *testing.T) {
	rule := func(port uint16, source policy.Addresses) policy.Rule {
		return policy.Rule{Action: policy.Allow, Match: policy.Match{
			Source:    policy.Peer{Within: []policy.Addresses{source}},
			Transport: []policy.Transport{{Protocol: policy.TCP, DestinationPorts: policy.Ports{Ranges: []policy.PortRange{{First: port, Last: port}}}}},
		}}
	}
	nets := func(list ...string) (a policy.Addresses) {
		for _, n := range list {
			a.Nets = append(a.Nets, policy.Net{CIDR: prefixOf(n)})
		}
		return a
	}
	clients := policy.Addresses{Sets: []policy.SetID{"clients"}}
	before := one(false, rule(81, nets("10.1.0.0/16", "10.2.0.0/16")), rule(82, nets("10.3.0.0/16", "10.4.0.0/16")), rule(80, clients))
	after := one(false, rule(82, nets("10.3.0.0/16", "10.4.0.0/16")), rule(22, clients))
	after.Sets["clients"] = &policy.Set{Members: map[policy.Member]struct{}{member("10.244.0.7/32"): {}}}
	allows := map[string][]string{ // what a port is open for, before or after
		"81": {"10.1.0.0/16 10.2.0.0/16"}, "82": {"10.3.0.0/16 10.4.0.0/16"}, "80": {"10.244.0.9/32"}, "22": {"10.244.0.7/32"},
	}
	h := newHost()
	look := func(when string) {
		for _, l := range h.tables[policy.IPv4][policyChain(policy.PolicyID{Namespace: "prod", Name: "web"}, policy.Ingress)] {
			m := regexp.MustCompile(`--match-set (\S+) src .*--dports (\d+)`).FindStringSubmatch(l)
			var members []string
			for e := range h.sets[m[1]].Members {
				members = append(members, e.String())
			}
			slices.Sort(members)
			if got := strings.Join(members, " "); !slices.Contains(allows[m[2]], got) {
				t.Errorf("%s: port %s is open for %q", when, m[2], got)
			}
		}
	}
	d := newTable(h)
	d.Update(before.Delta())
	apply(t, d)
	h.fail = func(op, about string) error {
		look("before " + op + " " + strings.SplitN(about, "\n", 2)[0])
		return nil
	}
	d.Update(policytest.Diff(before, after))
	apply(t, d)
	look("at the end")
	if len(h.sets) != 3 {
		t.Errorf("%d sets are left, want those of clients, and one of networks: %v", len(h.sets), h.sets)
	}
}

// TestGolden shows what is written for a few policies.
func TestGolden(t *testing.T) {
	for name, s := range golden() {
		t.Run(name, func(t *testing.T) {
			h := newHost()
			d := newTable(h)
			d.Update(s.Delta())
			apply(t, d)
			var got string
			for _, f := range both {
				got += "-- " + f.String() + " --\n" + withoutStatic(h.print(f), f)
			}
			file := filepath.Join("testdata", name+".golden")
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// withoutStatic leaves out the chains that are always the same; static.golden has them.
func withoutStatic(text string, f policy.Family) string {
	var out strings.Builder
	for l := range strings.Lines(text) {
		l = strings.TrimPrefix(l, "[0:0] ")
		name, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(l, ":"), "-A "), " ")
		if _, same := static(f)[name]; !same && (strings.HasPrefix(l, ":HEL-") || strings.HasPrefix(l, "-A")) {
			out.WriteString(l)
		}
	}
	return out.String()
}
