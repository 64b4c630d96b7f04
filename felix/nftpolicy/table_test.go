// SPDX-License-Identifier: Apache-2.0

package nftpolicy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/heliograph-dev/heliograph/felix/kernel"
	"github.com/heliograph-dev/heliograph/policy"
)

// TestIncrementalIsFresh: whatever way leads to a state, the kernel holds what a new process would put there.
func TestIncrementalIsFresh(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			w, f := newWorld(seed), newFake()
			d := New(f, quiet())
			for step := range 60 {
				apply(t, d, w.next())
				if n := len(f.txs); n > 1 && f.txs[n-1].Replace {
					t.Fatalf("step %d: the table was replaced", step)
				}
				fresh := newFake()
				apply(t, New(fresh, quiet()), w.State)
				if diff := cmp.Diff(fresh.table.text(), f.table.text()); diff != "" {
					t.Fatalf("step %d (-fresh +incremental):\n%s", step, diff)
				}
			}
		})
	}
}

// three is a state of three policies with one pod each.
func three(t *testing.T) builder {
	t.Helper()
	return threeWith(policy.Rule{Action: policy.Allow, Match: policy.Match{Source: nets("10.0.0.0/8", "10.1.0.0/16", "192.0.2.0/24", "fd00::/8")}})
}

func threeWith(rule policy.Rule) builder {
	b := newBuilder()
	for i, s := range []string{"a", "b", "c"} {
		id := b.ingress(s, rule)
		b.pod("pod-"+s, fmt.Sprintf("hel%011x", i), chain(tier(id)), chain())
	}
	return b
}

// about says whether an operation has to do with a policy's rules.
func about(op Op, id policy.PolicyID) bool {
	return op.Kind == AddRule && op.Rule.Owner == id
}

func refusing(id policy.PolicyID, told bool) func(Transaction) error {
	return func(tx Transaction) error {
		for i, op := range tx.Ops {
			if about(op, id) {
				err := &RefusedError{Err: syscall.EINVAL}
				if told {
					err.Ops = []int{i}
				}
				return err
			}
		}
		return nil
	}
}

// rulesOf returns the rules of a policy's chain in the kernel.
func rulesOf(f *fake, id policy.PolicyID) []Rule {
	return f.table.chains[policyKey(id, policy.Ingress).name()].Rules
}

// TestRefusedPolicy: what the kernel does not take is closed and named, all else is in force.
func TestRefusedPolicy(t *testing.T) {
	for _, told := range []bool{true, false} {
		for _, first := range []bool{true, false} {
			t.Run(fmt.Sprintf("told %v at once %v", told, first), func(t *testing.T) {
				f := newFake()
				d := New(f, quiet())
				bad := name("b")
				if !first {
					apply(t, d, threeWith(policy.Rule{Action: policy.Allow}).State)
				}
				f.fail = refusing(bad, told)
				b := three(t)
				apply(t, d, b.State)
				if got := d.Refused(); len(got) != 1 || !errors.Is(got[bad], syscall.EINVAL) {
					t.Errorf("refused = %v", got)
				}
				rules := rulesOf(f, bad)
				if len(rules) != 2 || rules[1].Verdict.Kind != Drop || len(rules[1].When) > 0 {
					t.Errorf("rules of the refused policy = %v", rules)
				}
				for _, id := range []policy.PolicyID{name("a"), name("c")} {
					if rules := rulesOf(f, id); len(rules) != 2 || rules[0].Verdict.Kind != Accept {
						t.Errorf("rules of %s = %v", id, rules)
					}
				}
				f.fail = nil
				b.ingress("b", policy.Rule{Action: policy.Allow})
				apply(t, d, b.State)
				if rules := rulesOf(f, bad); len(d.Refused()) > 0 || len(rules) != 1 {
					t.Errorf("refused = %v, rules = %v", d.Refused(), rules)
				}
				if diff := cmp.Diff(modelOf(d.objects.ruleset()).text(), f.table.text()); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
			})
		}
	}
}

// TestRefusedInATierThatPasses: there its rules stand among those of others.
func TestRefusedInATierThatPasses(t *testing.T) {
	f, b := newFake(), newBuilder()
	pass := b.ingress("pass", policy.Rule{Action: policy.Pass, Match: policy.Match{Source: nets("10.0.0.0/8")}})
	bad := b.ingress("bad", policy.Rule{Action: policy.Allow})
	b.pod("pod", "hel00000000001", chain(tier(pass, bad)), chain())
	f.fail = refusing(bad, true)
	d := New(f, quiet())
	apply(t, d, b.State)
	if len(d.Refused()) != 1 || d.Refused()[bad] == nil {
		t.Errorf("refused = %v", d.Refused())
	}
	k := unitKey{kind: tierUnit, direction: policy.Ingress, text: tierText(tier(pass, bad))}
	rules := f.table.chains[k.name()].Rules
	if len(rules) != 3 || rules[0].Verdict.Kind != Return || rules[2].Verdict.Kind != Drop {
		t.Errorf("rules = %v", rules)
	}
}

// TestTooComplex: a rule that would be too many of the kernel's is refused without asking.
func TestTooComplex(t *testing.T) {
	f, b := newFake(), newBuilder()
	var many []policy.SetID
	for i := range 100 {
		id := policy.SetID(fmt.Sprint("set ", i))
		b.Sets[id] = addressSet("10.0.0.1")
		many = append(many, id)
	}
	bad := b.ingress("bad", policy.Rule{Action: policy.Allow, Match: policy.Match{Source: in(many...), Destination: in(many...)}})
	b.pod("pod", "hel00000000001", chain(tier(bad)), chain())
	d := New(f, quiet())
	apply(t, d, b.State)
	if len(d.Refused()) != 1 || len(rulesOf(f, bad)) != 2 {
		t.Errorf("refused = %v, rules = %v", d.Refused(), rulesOf(f, bad))
	}
}

// TestTransientFaults: what may be better next time is returned, and tried again.
func TestTransientFaults(t *testing.T) {
	for _, fault := range []error{syscall.ENOBUFS, syscall.ENOMEM, syscall.EAGAIN, syscall.EPERM} {
		t.Run(fault.Error(), func(t *testing.T) {
			f := newFake()
			d := New(f, quiet())
			apply(t, d, threeWith(policy.Rule{Action: policy.Allow}).State)
			before := f.table.text()
			f.fail = func(Transaction) error { return fault }
			b := three(t)
			delete(b.Endpoints, policy.EndpointID{Namespace: "prod", Name: "pod-a"})
			d.Update(between(d.state, b.State))
			for range 2 {
				if err := d.Apply(context.Background()); !errors.Is(err, fault) {
					t.Errorf("Apply = %v, want %v", err, fault)
				}
			}
			if diff := cmp.Diff(before, f.table.text()); diff != "" || len(d.Refused()) > 0 {
				t.Errorf("refused = %v, (-before +after):\n%s", d.Refused(), diff)
			}
			f.fail = nil
			apply(t, d, b.State)
			fresh := newFake()
			apply(t, New(fresh, quiet()), b.State)
			if diff := cmp.Diff(fresh.table.text(), f.table.text()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestFaultsAtRandom: however commits fail meanwhile, in the end all is there.
func TestFaultsAtRandom(t *testing.T) {
	for seed := range uint64(20) {
		w, f := newWorld(seed), newFake()
		d := New(f, quiet())
		f.fail = func(Transaction) error {
			switch w.IntN(4) {
			case 0:
				return syscall.ENOBUFS
			case 1:
				return &RefusedError{Err: syscall.ENOENT} // as if somebody had deleted something
			}
			return nil
		}
		for range 50 {
			d.Update(between(d.state, w.next()))
			_ = d.Apply(context.Background())
		}
		f.fail = nil
		for _, id := range slices.Collect(maps.Keys(d.Refused())) {
			delete(w.Policies, id)
		}
		apply(t, d, w.State)
		fresh := newFake()
		apply(t, New(fresh, quiet()), w.State)
		if diff := cmp.Diff(fresh.table.text(), f.table.text()); diff != "" {
			t.Fatalf("seed %d (-want +got):\n%s", seed, diff)
		}
	}
}

// TestSmallChangesAreSmall: what is sent is what has changed.
func TestSmallChangesAreSmall(t *testing.T) {
	b := newBuilder()
	b.Sets["clients"] = addressSet("10.0.0.1", "10.0.0.2")
	many := nets("10.0.0.0/24", "10.0.1.0/24", "10.0.2.0/24", "10.0.3.0/24")
	web := b.ingress("web", policy.Rule{Action: policy.Allow, Match: policy.Match{Source: in("clients")}},
		policy.Rule{Action: policy.Allow, Match: policy.Match{Source: many}})
	b.pod("pod-1", "hel00000000001", chain(tier(web)), chain())
	for _, c := range []struct {
		name   string
		change func()
		want   string
	}{
		{"nothing", func() {}, ""},
		{"a pod joins a set", func() { b.Sets["clients"] = addressSet("10.0.0.1", "10.0.0.2", "10.0.0.3") }, "+1"},
		{"one joins, one leaves", func() { b.Sets["clients"] = addressSet("10.0.0.1", "10.0.0.2", "10.0.0.4") }, "-1 +1"},
		{"a block more", func() {
			b.Policies[web] = with(b.Policies[web], nets("10.0.0.0/24", "10.0.1.0/24", "172.16.0.0/12", "10.0.2.0/24", "10.0.3.0/24"))
		}, "+1"},
		{"a block that covers others", func() {
			b.Policies[web] = with(b.Policies[web], nets("10.0.0.0/24", "10.0.1.0/24", "10.0.0.0/8", "172.16.0.0/12", "10.0.2.0/24", "10.0.3.0/24"))
		}, "-4 +1"},
		{"and goes", func() {
			b.Policies[web] = with(b.Policies[web], nets("10.0.0.0/24", "10.0.1.0/24", "172.16.0.0/12", "10.0.2.0/24", "10.0.3.0/24"))
		}, "-1 +4"},
		{"another pod like the first", func() { b.pod("pod-2", "hel00000000002", chain(tier(web)), chain()) }, "+1 +1 +1 +1"},
		{"a pod is isolated", func() { b.pod("pod-2", "hel00000000002", chain(tier(web)), chain(tier(web))) }, "chain chain rule rule rule -1 +1"},
	} {
		f := newFake()
		d := New(f, quiet())
		before := between(policy.NewState(), b.State)
		d.Update(before)
		if err := d.Apply(context.Background()); err != nil {
			t.Fatal(err)
		}
		f.txs = nil
		b = builder{&policy.State{Sets: maps.Clone(b.Sets), Policies: maps.Clone(b.Policies), Endpoints: maps.Clone(b.Endpoints)}}
		c.change()
		apply(t, d, b.State)
		if got := summary(f.txs); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// with is the policy with other networks in its second rule.
func with(p *policy.Policy, peer policy.Peer) *policy.Policy {
	out := *p
	out.Ingress = slices.Clone(p.Ingress)
	out.Ingress[1].Match.Source = peer
	return &out
}

func summary(txs []Transaction) string {
	var out []string
	for _, tx := range txs {
		for _, op := range tx.Ops {
			switch op.Kind {
			case AddElements:
				out = append(out, fmt.Sprintf("+%d", len(op.Elements)))
			case RemoveElements:
				out = append(out, fmt.Sprintf("-%d", len(op.Elements)))
			case AddRule:
				out = append(out, "rule")
			case AddChain:
				out = append(out, "chain")
			default:
				out = append(out, fmt.Sprint(op.Kind))
			}
		}
	}
	return strings.Join(out, " ")
}

func TestBadDevices(t *testing.T) {
	f, b := newFake(), newBuilder()
	b.pod("long", "hel-much-too-long-for-a-device", chain(), chain())
	b.pod("good", "hel00000000001", chain(), chain())
	d := New(f, quiet())
	d.Update(b.Delta())
	if err := d.Apply(context.Background()); err == nil || !strings.Contains(err.Error(), "hel-much-too-long") {
		t.Errorf("Apply = %v", err)
	}
	if n := len(f.table.sets[setSelf].elements); n != 1 {
		t.Errorf("%d devices", n)
	}
}

// TestTwoEndpointsOfADevice: the first in order has it, until it goes.
func TestTwoEndpointsOfADevice(t *testing.T) {
	f, b := newFake(), newBuilder()
	deny := b.ingress("deny")
	b.pod("a", "hel00000000001", chain(tier(deny)), chain())
	b.pod("b", "hel00000000001", chain(), chain())
	d := New(f, quiet())
	apply(t, d, b.State)
	verdict := func() VerdictKind {
		return f.table.sets[mapIngress].elements[kernel.PaddedName("hel00000000001")].Verdict.Kind
	}
	if verdict() != Jump {
		t.Errorf("verdict = %v", verdict())
	}
	delete(b.Endpoints, policy.EndpointID{Namespace: "prod", Name: "a"})
	d.Update(policy.Delta{Endpoints: []policy.EndpointChange{{ID: policy.EndpointID{Namespace: "prod", Name: "a"}, Op: policy.Removed}}})
	if err := d.Apply(context.Background()); err != nil || verdict() != Accept {
		t.Errorf("verdict = %v, %v", verdict(), err)
	}
}

func TestCounters(t *testing.T) {
	b := newBuilder()
	b.ingress("web", policy.Rule{Action: policy.Allow}, policy.Rule{Action: policy.Deny})
	d := New(newFake(), quiet())
	apply(t, d, b.State)
	got, err := d.Counters(context.Background())
	want := map[policy.RuleID]policy.Count{{Policy: name("web")}: {Packets: 7, Bytes: 420}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}

func TestComment(t *testing.T) {
	long := policy.RuleID{Policy: name(strings.Repeat("x", 200))}
	other := policy.RuleID{Policy: name(strings.Repeat("x", 200) + "y")}
	if c := comment(long.String()); len(c) != longestComment || c == comment(other.String()) {
		t.Errorf("comment = %q", c)
	}
}

// TestStages: what is too large goes in parts, of which the last alone is met by packets.
func TestStages(t *testing.T) {
	b := three(t)
	many := make([]string, 500)
	for i := range many {
		many[i] = fmt.Sprintf("10.1.%d.%d", i/250, i%250)
	}
	b.Sets["many"] = addressSet(many...)
	want := newFake()
	apply(t, New(want, quiet()), b.State)
	for _, exists := range []bool{false, true} {
		f := newFake()
		d := New(f, quiet())
		if exists {
			apply(t, d, policy.NewState())
		}
		f.txs, f.limit = nil, 40
		f.fail = func(tx Transaction) error {
			for _, v := range f.table.sets[mapIngress].elements {
				t.Errorf("%s is in force before all is there", v.Verdict.Chain)
			}
			return nil
		}
		apply(t, d, b.State)
		if diff := cmp.Diff(want.table.text(), f.table.text()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if d.stale {
			t.Error("the driver does not know what it has done")
		}
	}
}
