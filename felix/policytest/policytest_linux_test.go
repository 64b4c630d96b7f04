// SPDX-License-Identifier: Apache-2.0

package policytest

import (
	"context"
	"strings"
	"testing"

	"github.com/heliograph-dev/heliograph/internal/nettest"
	"github.com/heliograph-dev/heliograph/policy"
	"github.com/heliograph-dev/heliograph/policy/eval"
)

// fake is a renderer that renders nothing, but runs a script of nft.
type fake struct {
	t      testing.TB
	script string
}

func (f *fake) Update(policy.Delta)                {}
func (f *fake) QueueResync()                       {}
func (f *fake) Refused() map[policy.PolicyID]error { return nil }
func (f *fake) Delete(context.Context) error       { return f.nft("delete table inet fake") }
func (f *fake) Apply(context.Context) error        { return f.nft(f.script) }
func (f *fake) Counters(context.Context) (map[policy.RuleID]policy.Count, error) {
	return nil, nil
}

func (f *fake) nft(script string) error {
	if script == "" {
		return nil
	}
	_, err := command("nft", script)
	return err
}

// TestEverythingArrives: where there is no policy, each packet of each kind comes out where it should.
func TestEverythingArrives(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		l := NewLab(t)
		d := newDice(1)
		for range 5 {
			packets := d.packets(300)
			arrived, err := l.pass(packets)
			if err != nil {
				t.Fatal(err)
			}
			for i, p := range packets {
				if len(arrived[i]) != 1 || arrived[i][0] != p.To {
					t.Errorf("%s arrived at %s", p, arrived[i])
				}
			}
		}
	})
}

// TestSeesBugs: a renderer that is wrong is found out.
func TestSeesBugs(t *testing.T) {
	for _, tt := range []struct{ name, script, want string }{
		{"open", "", "want Deny"},
		{"closed", "add table inet fake; add chain inet fake f { type filter hook forward priority 0; policy drop; }", "want Allow"},
		{"a port", "add table inet fake; add chain inet fake f { type filter hook forward priority 0; }; add rule inet fake f tcp dport 80 drop", "want"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			nettest.Run(t, func(t *testing.T) {
				r := Check(t, func(t testing.TB) Renderer { return &fake{t, tt.script} }, Options{Seed: 7, NoCounters: true, NoShrink: tt.name == "closed"})
				if len(r.Mismatches) == 0 || !strings.Contains(r.Mismatches[0], tt.want) {
					t.Errorf("got %s, %q", r, r.Mismatches)
				}
			})
		})
	}
}

// TestDraws: what is drawn is of use: states are valid, change, and decide either way.
func TestDraws(t *testing.T) {
	d := newDice(1)
	state, told := policy.NewState(), policy.NewState()
	verdicts, reasons := map[policy.Action]int{}, map[eval.Reason]int{}
	for i := range 50 {
		next := d.next(state)
		delta := Diff(state, next)
		if delta.Empty() {
			t.Errorf("step %d changes nothing", i)
		}
		if err := told.Apply(delta); err != nil {
			t.Errorf("step %d: %v", i, err)
		}
		if rest := Diff(told, next); !rest.Empty() {
			t.Errorf("step %d: the difference leaves %+v", i, rest)
		}
		state = next
		j := newJudge(state, d.pods)
		for _, p := range d.packets(100) {
			v, why, _ := j.verdict(p)
			verdicts[v]++
			if r := j.eval.Evaluate(p.Packet); why == "policy/eval" {
				for _, trace := range []*eval.Trace{r.Egress, r.Ingress} {
					if trace != nil {
						reasons[trace.Reason]++
					}
				}
			}
		}
	}
	t.Log(verdicts, reasons)
	if verdicts[policy.Allow] < 1500 || verdicts[policy.Deny] < 1500 {
		t.Errorf("verdicts %v: want both often", verdicts)
	}
	for r := eval.ByRule; r <= eval.IsUnknown; r++ {
		if reasons[r] < 100 {
			t.Errorf("reasons %v: want each often", reasons)
		}
	}
}
