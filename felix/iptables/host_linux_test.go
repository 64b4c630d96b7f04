// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/heliograph-dev/heliograph/felix/policytest"
	"github.com/heliograph-dev/heliograph/internal/nettest"
	"github.com/heliograph-dev/heliograph/policy"
)

// variants runs a test for each variant in a namespace of its own.
func variants(t *testing.T, f func(t *testing.T, v Variant)) {
	for _, v := range []Variant{NFT, Legacy} {
		t.Run(string(v), func(t *testing.T) {
			need(t, v)
			nettest.Run(t, func(t *testing.T) { f(t, v) })
		})
	}
}

// need skips a test where a variant's commands, or that of ipset, are missing.
func need(t *testing.T, v Variant) {
	t.Helper()
	for _, name := range []string{"iptables-" + string(v) + "-restore", "ip6tables-" + string(v) + "-restore", "ipset"} {
		if _, err := exec.LookPath(name); err != nil {
			nettest.Skip(t, err.Error())
		}
	}
}

// tool runs iptables and ip6tables of a variant.
func tool(t *testing.T, v Variant, args ...string) {
	t.Helper()
	for _, name := range []string{"iptables-", "ip6tables-"} {
		nettest.Cmd(t, name+string(v), args...)
	}
}

// saved is what iptables-save prints of what is not ours, and of what is.
func saved(t *testing.T, v Variant) (theirs, ours string) {
	t.Helper()
	for _, name := range []string{"iptables-", "ip6tables-"} {
		for l := range strings.Lines(nettest.Cmd(t, name+string(v)+"-save")) {
			switch {
			case strings.HasPrefix(l, "#"):
			case strings.Contains(l, prefix):
				ours += l
			default:
				theirs += l
			}
		}
	}
	return theirs, ours
}

// TestHost: our chains stand beside other people's, drift is healed, and nothing is left.
func TestHost(t *testing.T) {
	variants(t, func(t *testing.T, v Variant) {
		tool(t, v, "-N", "KUBE-FORWARD")
		tool(t, v, "-A", "KUBE-FORWARD", "-m", "mark", "--mark", "0x4000/0x4000", "-j", "ACCEPT")
		tool(t, v, "-A", "FORWARD", "-j", "KUBE-FORWARD")
		tool(t, v, "-t", "mangle", "-A", "PREROUTING", "-j", "MARK", "--set-mark", "7")
		nettest.Cmd(t, "ipset", "create", "KUBE-SET", "hash:ip")
		before, _ := saved(t, v)
		d := open(t, v)
		d.Update(small().Delta())
		apply(t, d)
		after, first := saved(t, v)
		if diff := cmp.Diff(before, after); diff != "" {
			t.Errorf("other people's rules changed (-before +after):\n%s", diff)
		}
		web := policyChain(policy.PolicyID{Namespace: "prod", Name: "web"}, policy.Ingress)
		for _, harm := range [][]string{
			{"-F", web}, {"-A", web, "-j", "ACCEPT"}, {"-I", "FORWARD", "-j", "ACCEPT"}, {"-D", "HEL-INPUT", "1"}, {"-N", "HEL-x"}, {"-F", "OUTPUT"},
		} {
			tool(t, v, harm...)
			d.QueueResync()
			apply(t, d)
			if harm[1] == "FORWARD" {
				tool(t, v, "-D", "FORWARD", "-j", "ACCEPT")
			}
			if _, ours := saved(t, v); ours != first {
				t.Errorf("after %s (-before +after):\n%s", harm, cmp.Diff(first, ours))
			}
		}
		d.QueueResync()
		apply(t, d)
		if _, ours := saved(t, v); ours != first {
			t.Errorf("a second resync changes something (-before +after):\n%s", cmp.Diff(first, ours))
		}
		if err := d.Delete(context.Background()); err != nil {
			t.Fatal(err)
		}
		after, ours := saved(t, v)
		if diff := cmp.Diff(before, after); diff != "" || ours != "" {
			t.Errorf("after Delete there is %s, and (-before +after):\n%s", ours, diff)
		}
		if got := nettest.Cmd(t, "ipset", "list", "-n"); got != "KUBE-SET\n" {
			t.Errorf("sets after Delete: %s", got)
		}
	})
}

// guarded is a lab of which pod 1 accepts port 80 of pod 0 and of the outside, and a state that says so.
func guarded(t *testing.T) (*policytest.Lab, *policy.State) {
	l, state := policytest.NewLab(t), policy.NewState()
	id := policy.PolicyID{Namespace: "prod", Name: "web"}
	web := small().Policies[id]
	tcp := web.Ingress[0].Match.Transport[0]
	web.Ingress[0].Match.Transport = append(web.Ingress[0].Match.Transport, policy.Transport{Protocol: policy.UDP, DestinationPorts: tcp.DestinationPorts})
	state.Policies[id] = web
	state.Sets["clients"] = &policy.Set{Members: map[policy.Member]struct{}{}}
	for i := range l.Pods {
		e := l.Endpoint(i)
		if i == 1 {
			e.Ingress.Tiers = []policy.Tier{{Name: policy.DefaultTier, Default: policy.Deny, Policies: []policy.PolicyID{id}}}
		}
		state.Endpoints[e.ID] = e
	}
	for _, ip := range append(l.Outside, l.Pods[0].IPs...) {
		state.Sets["clients"].Members[policy.Member{Prefix: netip.PrefixFrom(ip, ip.BitLen())}] = struct{}{}
	}
	return l, state
}

// flood begins a flood of what a guarded lab allows and denies.
func flood(l *policytest.Lab) *policytest.Flood {
	var allowed, denied []policytest.Packet
	for _, f := range both {
		allowed = append(allowed, l.Packet(0, 1, f, policy.UDP, 80), l.Packet(policytest.Outside, 1, f, policy.TCP, 80), l.Packet(policytest.Node, 1, f, policy.UDP, 81))
		denied = append(denied, l.Packet(0, 1, f, policy.UDP, 81), l.Packet(2, 1, f, policy.TCP, 80), l.Packet(6, 0, f, policy.UDP, 80))
	}
	return l.Flood(allowed, denied)
}

// TestFlood: while agents restart, and policies and sets change, nothing that is denied gets in, and
// nothing that is allowed is lost.
func TestFlood(t *testing.T) {
	variants(t, func(t *testing.T, v Variant) {
		l, state := guarded(t)
		d := open(t, v)
		d.Update(state.Delta())
		apply(t, d)
		f := flood(l)
		web := state.Policies[policy.PolicyID{Namespace: "prod", Name: "web"}]
		for i := range 8 {
			change := *state
			other := policy.PolicyID{Namespace: "prod", Name: "other"}
			change.Policies = map[policy.PolicyID]*policy.Policy{web.ID: web, other: {ID: other, Egress: web.Ingress}}
			d.Update(policytest.Diff(state, &change))
			apply(t, d)
			d.Update(policytest.Diff(&change, state))
			apply(t, d)
			if i%2 == 0 { // a restart, which finds all as it was, or has to lay out some of it
				d = open(t, v)
				d.Update(state.Delta())
				apply(t, d)
			}
		}
		f.Stop()
	})
}

// TestSwitch: from one variant to the other and back, nothing gets in, and nothing is lost.
func TestSwitch(t *testing.T) {
	need(t, NFT)
	need(t, Legacy)
	nettest.Run(t, func(t *testing.T) {
		l, state := guarded(t)
		var last *Table
		var f *policytest.Flood
		for i, v := range []Variant{NFT, Legacy, NFT, Legacy} {
			d := open(t, v)
			d.Update(state.Delta())
			apply(t, d)
			if i == 0 {
				f = flood(l)
			} else if err := last.DeleteRules(context.Background()); err != nil {
				t.Error(err)
			}
			last = d
		}
		f.Stop()
		if _, ours := saved(t, NFT); ours != "" {
			t.Errorf("left in nft:\n%s", ours)
		}
		if err := last.Delete(context.Background()); err != nil {
			t.Error(err)
		}
	})
}

// TestMarksAndLogs: of the mark, our bits are clear afterwards and the others as before; and what is
// denied is logged by its cause.
func TestMarksAndLogs(t *testing.T) {
	variants(t, func(t *testing.T, v Variant) {
		l, state := guarded(t)
		d := open(t, v)
		d.Update(state.Delta())
		apply(t, d)
		tool(t, v, "-t", "mangle", "-A", "PREROUTING", "-j", "MARK", "--set-mark", "0x40c00001")
		tool(t, v, "-A", "FORWARD", "-m", "mark", "--mark", "0x40c00001", "-m", "comment", "--comment", "passes #")
		var packets []policytest.Packet
		for _, f := range both {
			packets = append(packets, l.Packet(0, 1, f, policy.TCP, 80), l.Packet(policytest.Outside, 1, f, policy.UDP, 80), l.Packet(2, 1, f, policy.TCP, 80))
		}
		for i, at := range l.Pass(packets...) {
			if want := i%3 < 2; (len(at) == 1) != want {
				t.Errorf("%s: arrived at %s", packets[i], at)
			}
		}
		prefix := policy.LogPrefix(policy.Deny, policy.TierCause(policy.DefaultTier, policy.Ingress))
		for _, f := range both {
			text, err := d.handle.Save(context.Background(), f)
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(string(text)) {
				n, rest := cutCount(line)
				if strings.Contains(rest, "passes #") && n.Packets != 2 || strings.Contains(rest, prefix) && n.Packets != 1 {
					t.Errorf("%s: %d packets met %s", f, n.Packets, rest)
				}
			}
			if !strings.Contains(string(text), prefix) {
				t.Errorf("%s: no line logs %s", f, prefix)
			}
		}
	})
}

// TestIPSet: members of all sorts are in the kernel as they were sent.
func TestIPSet(t *testing.T) {
	need(t, NFT)
	nettest.Run(t, func(t *testing.T) {
		k, err := Open(Auto, NewRestores())
		if err != nil {
			t.Fatal(err)
		}
		defer k.Close() //nolint:errcheck // a test's
		want := map[string]Set{}
		for _, f := range both {
			nets := Set{policy.AddressSet, f, map[policy.Member]struct{}{}}
			ports := Set{policy.AddressPortSet, f, map[policy.Member]struct{}{}}
			ip := netip.MustParseAddr(map[policy.Family]string{policy.IPv4: "10.0.0.0", policy.IPv6: "fd00::"}[f])
			for bits := 1; bits <= ip.BitLen(); bits++ {
				nets.Members[policy.Member{Prefix: netip.PrefixFrom(ip, bits).Masked()}] = struct{}{}
			}
			for i := range 3000 {
				ip = ip.Next()
				nets.Members[policy.Member{Prefix: netip.PrefixFrom(ip, ip.BitLen())}] = struct{}{}
				p := []policy.Protocol{policy.TCP, policy.UDP, policy.SCTP, policy.UDPLite}[i%4]
				ports.Members[policy.Member{Prefix: netip.PrefixFrom(ip, ip.BitLen()), Protocol: p, Port: uint16(i)}] = struct{}{} //nolint:gosec // small
			}
			want[setName("s", policy.AddressSet, f)], want[setName("s", policy.AddressPortSet, f)] = nets, ports
		}
		for name, s := range want {
			var members []policy.Member
			for m := range s.Members {
				members = append(members, m)
			}
			change(t, k, SetStep{Do: CreateSet, Name: name, Kind: s.Kind, Family: s.Family},
				SetStep{Do: AddMembers, Name: name, Members: members}, SetStep{Do: AddMembers, Name: name, Members: members[:3]})
		}
		nettest.Cmd(t, "ipset", "create", "KUBE-SET", "hash:ip")
		compareSets(t, k, want)
		for name, s := range want {
			leave(t, k, name, s)
		}
		compareSets(t, k, want)
		for name := range want {
			change(t, k, SetStep{Do: DestroySet, Name: name})
		}
		compareSets(t, k, map[string]Set{})
	})
}

// leave lets all members leave but two, which have left already when it asks again.
func leave(t *testing.T, k *Kernel, name string, s Set) {
	t.Helper()
	var list []policy.Member
	for m := range s.Members {
		if len(s.Members) > 2 {
			list = append(list, m)
			delete(s.Members, m)
		}
	}
	remove := SetStep{Do: RemoveMembers, Name: name, Members: list}
	change(t, k, remove, remove)
}

func change(t *testing.T, k *Kernel, steps ...SetStep) {
	t.Helper()
	if err := errors.Join(k.ChangeSets(t.Context(), steps)...); err != nil {
		t.Fatal(err)
	}
}

// TestStepsAreApart: of many steps one that the kernel refuses is told, and all others are taken.
func TestStepsAreApart(t *testing.T) {
	need(t, NFT)
	nettest.Run(t, func(t *testing.T) {
		k, err := Open(NFT, NewRestores())
		if err != nil {
			t.Fatal(err)
		}
		defer k.Close() //nolint:errcheck // a test's
		want, members := map[string]Set{}, []policy.Member{member("192.0.2.1/32")}
		var steps []SetStep
		for i := range 300 {
			name := fmt.Sprint(prefix, i)
			steps = append(steps, SetStep{Do: CreateSet, Name: name, Family: policy.IPv4}, SetStep{Do: AddMembers, Name: name, Members: members})
			want[name] = Set{Family: policy.IPv4, Members: map[policy.Member]struct{}{members[0]: {}}}
		}
		steps[200].Name = strings.Repeat("n", 40)
		delete(want, fmt.Sprint(prefix, 100))
		for i, err := range k.ChangeSets(t.Context(), steps) {
			if (err != nil) != (i == 200 || i == 201) {
				t.Errorf("%s: %v", steps[i], err)
			}
		}
		compareSets(t, k, want)
	})
}

func compareSets(t *testing.T, k *Kernel, want map[string]Set) {
	t.Helper()
	got, err := k.ListSets(prefix)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
		t.Fatalf("(-want +got):\n%s", diff)
	}
}

// TestDetect: the variant is the one that others use.
func TestDetect(t *testing.T) {
	need(t, NFT)
	need(t, Legacy)
	for _, tt := range []struct {
		name string
		rule []string
		want Variant
	}{
		{"nobody has rules", nil, NFT},
		{"rules in nft", []string{"iptables-nft", "-A", "INPUT", "-j", "ACCEPT"}, NFT},
		{"rules in legacy", []string{"iptables-legacy", "-A", "INPUT", "-j", "ACCEPT"}, Legacy},
		{"chains in legacy, of IPv6", []string{"ip6tables-legacy", "-t", "mangle", "-N", "KUBE-KUBELET-CANARY"}, Legacy},
		{"a chain of ours in legacy", []string{"iptables-legacy", "-N", "HEL-FORWARD"}, NFT},
	} {
		t.Run(strings.NewReplacer(" ", "_", ",", "").Replace(tt.name), func(t *testing.T) {
			nettest.Run(t, func(t *testing.T) {
				if tt.rule != nil {
					nettest.Cmd(t, tt.rule[0], tt.rule[1:]...)
				}
				if got := detect(); got != tt.want {
					t.Errorf("got %s, want %s", got, tt.want)
				}
			})
		})
	}
}

// TestNoIPTables: a host without the commands is told so.
func TestNoIPTables(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if _, err := Open(Auto, NewRestores()); !errors.Is(err, ErrNoIPTables) {
		t.Errorf("got %v, want %v", err, ErrNoIPTables)
	}
}
