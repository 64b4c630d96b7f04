// SPDX-License-Identifier: Apache-2.0

package policytest

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/heliograph-dev/heliograph/internal/nettest"
	"github.com/heliograph-dev/heliograph/policy"
)

// seedEnv repeats a run with the seed that it printed.
const seedEnv = "HELIOGRAPH_SEED"

// Seed is the one in HELIOGRAPH_SEED, else the given one, else a new one. It prints it.
func Seed(t testing.TB, given uint64) uint64 {
	t.Helper()
	seed, err := strconv.ParseUint(os.Getenv(seedEnv), 10, 64)
	if err != nil {
		seed = given
	}
	if seed == 0 {
		seed = uint64(time.Now().UnixNano()) //nolint:gosec // any number
	}
	t.Logf("seed %d", seed)
	return seed
}

// Run tests a renderer, in a namespace of its own. open is called in there, and more than once: what an
// earlier one left in the kernel is then replaced by the next.
func Run(t *testing.T, open func(t testing.TB) Renderer, o Options) {
	t.Helper()
	nettest.Run(t, func(t *testing.T) {
		o.Seed = Seed(t, o.Seed)
		r := Check(t, open, o)
		t.Logf("%s", r)
		for _, m := range r.Mismatches {
			t.Error(m)
		}
	})
}

// Result is what Check has found.
type Result struct {
	Packets, Allowed, States, Doubtful int
	Rules                              uint64 // that matched, as the renderer counted them
	Mismatches                         []string
	Applies                            time.Duration
}

// String is one line.
func (r Result) String() string {
	return fmt.Sprintf("%d packets, of which %d allowed, to %d states; %d matches counted; %s in Apply; %d mismatches",
		r.Packets, r.Allowed, r.States, r.Rules, r.Applies.Round(time.Millisecond), len(r.Mismatches))
}

// Check is what Run does inside of nettest.Run. It ends with the first state that has a mismatch.
func Check(t testing.TB, open func(t testing.TB) Renderer, o Options) Result {
	o = o.defaults()
	l := NewLab(t)
	c := &check{Lab: l, open: open, options: o, have: policy.NewState(), dice: newDice(o.Seed)}
	c.renderer = open(t)
	for c.result.Packets < o.Packets && len(c.result.Mismatches) == 0 {
		c.round()
	}
	c.end()
	return c.result
}

// check is a run.
type check struct {
	*Lab
	open     func(t testing.TB) Renderer
	options  Options
	dice     *dice
	renderer Renderer
	have     *policy.State // what the renderer was told
	result   Result
}

// round draws the next state, makes it true, and sends packets to it.
func (c *check) round() {
	want := c.dice.next(c.have)
	switch {
	case c.result.States > 0 && c.dice.chance(8): // a restart
		c.renderer, c.have = c.open(c.t), policy.NewState()
	case c.dice.chance(10):
		c.renderer.QueueResync()
	}
	c.apply(c.renderer, Diff(c.have, want))
	c.have = want
	c.result.States++
	for id, err := range c.renderer.Refused() {
		c.failf("state %d: policy %s refused: %v", c.result.States, id, err)
	}
	var packets []Packet
	j := newJudge(want, c.dice.pods)
	for _, p := range c.dice.packets(c.options.PerState) {
		if _, _, doubtful := j.verdict(p); doubtful {
			c.result.Doubtful++
			continue
		}
		packets = append(packets, p)
	}
	before := c.counters()
	wrong := c.exchange(j, packets, true)
	c.compareCounters(j, packets, before)
	if len(wrong) > 0 {
		c.report(j, packets, wrong)
	}
}

func (c *check) apply(r Renderer, d policy.Delta) {
	c.t.Helper()
	start := time.Now()
	r.Update(d)
	if err := r.Apply(context.Background()); err != nil {
		c.t.Fatalf("state %d: apply: %v", c.result.States+1, err)
	}
	c.result.Applies += time.Since(start)
}

func (c *check) failf(format string, args ...any) {
	c.result.Mismatches = append(c.result.Mismatches, fmt.Sprintf(format, args...))
}

// exchange sends packets and returns which had another fate than they should have, with what was seen.
func (c *check) exchange(j judge, packets []Packet, count bool) map[int]string {
	c.t.Helper()
	arrived, err := c.pass(packets)
	if err != nil {
		c.t.Fatal(err)
	}
	wrong := map[int]string{}
	for i, p := range packets {
		want, _, _ := j.verdict(p)
		got := arrived[i]
		if count {
			c.result.Packets++
			c.result.Allowed += map[bool]int{true: 1}[want == policy.Allow]
		}
		switch {
		case want == policy.Allow && len(got) == 0:
			wrong[i] = "did not arrive"
		case want == policy.Deny && len(got) > 0:
			wrong[i] = fmt.Sprintf("arrived at %s", got)
		case want == policy.Allow && (len(got) != 1 || got[0] != p.To):
			wrong[i] = fmt.Sprintf("arrived at %s, and not once at %s", got, p.To)
		}
	}
	return wrong
}

// burst is how many packets surely find room in a socket that is not read meanwhile.
const burst = 100

// pass sends packets, and says where each came out.
func (l *Lab) pass(packets []Packet) (map[int][]End, error) {
	l.forget()
	out := map[int][]End{}
	for first := 0; first < len(packets); first += burst {
		arrived, err := l.passBurst(packets[first:min(first+burst, len(packets))])
		if err != nil {
			return nil, err
		}
		for i, at := range arrived {
			out[first+i] = at
		}
	}
	return out, nil
}

func (l *Lab) passBurst(packets []Packet) (map[int][]End, error) {
	base := l.wires.nextID(len(packets) + 1)
	err := l.wires.do(func() error {
		for i, p := range packets {
			if err := l.wires.inject(p.From, p.marshal(base+uint32(i))); err != nil { //nolint:gosec // few
				return fmt.Errorf("send %s: %w", p, err)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	arrivals, err := l.wires.fence(base + uint32(len(packets))) //nolint:gosec // few
	if err != nil {
		return nil, err
	}
	out := map[int][]End{}
	for _, a := range arrivals {
		i := int(a.id - base)
		if a.id < base || i >= len(packets) {
			continue
		}
		p := packets[i]
		if a.src == p.Src && a.protocol == p.Protocol && (!a.dst.IsValid() || a.dst == p.Dst) {
			out[i] = append(out[i], a.at)
		}
	}
	return out, nil
}

func (c *check) counters() map[policy.RuleID]policy.Count {
	if c.options.NoCounters {
		return nil
	}
	counts, err := c.renderer.Counters(context.Background())
	if err != nil {
		c.t.Fatalf("state %d: counters: %v", c.result.States, err)
	}
	return counts
}

// compareCounters checks that each rule has counted the packets that it matched.
func (c *check) compareCounters(j judge, packets []Packet, before map[policy.RuleID]policy.Count) {
	if c.options.NoCounters {
		return
	}
	want := map[policy.RuleID]uint64{}
	for _, p := range packets {
		j.walks(p, want)
	}
	after := c.counters()
	for _, id := range union(want, diffCounts(before, after), compareRules) {
		got := after[id].Packets - before[id].Packets
		c.result.Rules += got
		if got != want[id] {
			c.failf("state %d: rule %s counted %d packets, want %d", c.result.States, id, got, want[id])
		}
	}
}

func diffCounts(before, after map[policy.RuleID]policy.Count) map[policy.RuleID]uint64 {
	out := map[policy.RuleID]uint64{}
	for id, n := range after {
		if n.Packets != before[id].Packets {
			out[id] = n.Packets - before[id].Packets
		}
	}
	return out
}

func compareRules(a, b policy.RuleID) int {
	if c := a.Policy.Compare(b.Policy); c != 0 {
		return c
	}
	return (int(a.Direction)-int(b.Direction))*1000 + a.Index - b.Index
}

// end checks that nothing is in force once the renderer has deleted what is its.
func (c *check) end() {
	if len(c.result.Mismatches) > 0 {
		return
	}
	if err := c.renderer.Delete(context.Background()); err != nil {
		c.t.Fatalf("delete: %v", err)
	}
	packets := c.dice.packets(c.options.PerState)
	arrived, err := c.pass(packets)
	if err != nil {
		c.t.Fatal(err)
	}
	for i, p := range packets {
		if len(arrived[i]) != 1 || arrived[i][0] != p.To {
			c.failf("after Delete: %s arrived at %s", p, arrived[i])
		}
	}
}

// report tells of the first packet with a wrong fate: with the smallest state in which it still has it.
func (c *check) report(j judge, packets []Packet, wrong map[int]string) {
	first := slices.Min(slices.Collect(maps.Keys(wrong)))
	p := packets[first]
	want, why, _ := j.verdict(p)
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d, state %d: %d packets went wrong. The first: %s: want %s (%s), but it %s\n",
		c.options.Seed, c.result.States, len(wrong), p, want, why, wrong[first])
	small, ok := c.shrink(p)
	if !ok {
		b.WriteString("A fresh renderer does it right: it is in the change from the state before.\n")
	}
	j = newJudge(small, c.dice.pods)
	fmt.Fprintf(&b, "%s\n%s", describeReport(j.eval.Evaluate(p.Packet)), Describe(small))
	c.failf("%s", b.String())
}
