// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/heliograph-dev/heliograph/felix/path"
)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// history is a track of questions a second apart: '.' answered, 'x' lost, ' ' not sent.
func history(s string) *track {
	t := &track{}
	for i, c := range s {
		if c != ' ' {
			t.record(outcome{sent: epoch.Add(time.Duration(i) * time.Second), answered: c == '.'})
		}
	}
	return t
}

func TestTrack(t *testing.T) {
	at := func(s int) time.Time { return epoch.Add(time.Duration(s) * time.Second) }
	for _, c := range []struct {
		in   string
		want path.Evidence
	}{
		{"", path.Evidence{}},
		{".", path.Evidence{Run: 1, RunSince: at(0), LastAnswer: at(0), Sent: 1}},
		{"..x", path.Evidence{Run: 1, RunSince: at(2), LastAnswer: at(1), Sent: 3, Lost: 1}},
		{"xxxxxxx", path.Evidence{Run: 7, RunSince: at(0), Sent: 5, Lost: 5}},
		{"xxx....", path.Evidence{Run: 4, RunSince: at(3), LastAnswer: at(6), Sent: 5, Lost: 1}},
	} {
		if d := cmp.Diff(c.want, history(c.in).evidence()); d != "" {
			t.Errorf("%q: %s", c.in, d)
		}
	}
}

func TestTimeout(t *testing.T) {
	for _, c := range []struct {
		rtts []time.Duration
		want time.Duration
	}{
		{nil, maxTimeout},
		{[]time.Duration{time.Millisecond, time.Millisecond}, minTimeout},
		{[]time.Duration{100 * time.Millisecond}, 300 * time.Millisecond}, // RFC 6298: SRTT + 4 * RTT/2
		{[]time.Duration{2 * time.Second}, maxTimeout},
	} {
		tr := &track{}
		for _, r := range c.rtts {
			tr.measured(r)
		}
		if got := tr.timeout(); got != c.want {
			t.Errorf("%v: %v, want %v", c.rtts, got, c.want)
		}
	}
}

func TestJudge(t *testing.T) {
	const u, a, d, l = path.Unknown, path.Answers, path.Doubtful, path.Lost
	type verdicts [path.Methods]path.Verdict
	for _, c := range []struct {
		name               string
		native, vxlan      string
		nativeICMP, vxICMP string
		able               bool
		want               verdicts
		silent, kernel     bool
	}{
		{name: "nothing yet", want: verdicts{u, u, u}},
		{name: "both answer", native: "..", vxlan: ".", want: verdicts{a, u, a}},
		{name: "one lost", native: "..x", vxlan: "...", want: verdicts{d, u, a}},
		{name: "four in a row", native: "xxxx", vxlan: "....", want: verdicts{d, u, a}},
		{name: "five in a row", native: "xxxxx", vxlan: ".....", want: verdicts{l, u, a}},
		{name: "five, but the other answered before", native: "  xxxxx", vxlan: "..", want: verdicts{d, u, a}},
		{name: "one witness is not enough", native: "xxxxx", vxlan: "xxxx.", want: verdicts{d, u, a}},
		{name: "two are", native: "xxxxx", vxlan: "xxx..", want: verdicts{l, u, a}},
		{name: "all lost", native: "xxxxx", vxlan: "xxxxx", silent: true},
		{name: "all lost, the kernel is being asked", able: true, native: "xxxxx", vxlan: "xxxxx", nativeICMP: "xx", want: verdicts{d, u, d}},
		{
			name: "a kernel is no witness against an agent", able: true, native: "xxxxx", vxlan: " xxxx", nativeICMP: "..", vxICMP: "..",
			want: verdicts{d, u, d},
		},
		{name: "the kernel is silent as well", able: true, native: "xxxxx", vxlan: "xxxxx", nativeICMP: "xxxxx", vxICMP: "xxxxx", silent: true},
		{name: "the kernel answers", able: true, native: "xxxxx", vxlan: "xxxxx", nativeICMP: "..", vxICMP: "..", want: verdicts{a, u, a}, kernel: true},
		{
			name: "the kernel answers by one", able: true, native: "xxxxx", vxlan: "xxxxx",
			nativeICMP: "xxxxx", vxICMP: ".....", want: verdicts{l, u, a}, kernel: true,
		},
	} {
		var in [path.Methods]testimony
		for i := range in {
			in[i] = testimony{udp: history(""), icmp: history("")}
		}
		in[path.Native] = testimony{true, history(c.native), history(c.nativeICMP), c.able}
		in[path.VXLAN] = testimony{true, history(c.vxlan), history(c.vxICMP), c.able}
		out, silent := judge(&in)
		got := verdicts{}
		for i := range out {
			got[i] = out[i].verdict
		}
		if d := cmp.Diff(c.want, got); d != "" || silent != c.silent || out[path.Native].kernel != c.kernel {
			t.Errorf("%s: silent %v, %+v\n%s", c.name, silent, out, d)
		}
	}
}

func TestPlan(t *testing.T) {
	lanes := func(n, members int, need path.Need) []*lane {
		var out []*lane
		for range n {
			out = append(out, &lane{need: need, members: make([]*way, members)})
		}
		return out
	}
	for _, c := range []struct {
		name   string
		nodes  int
		lanes  []*lane
		sample int
		period time.Duration
	}{
		{"three nodes", 3, lanes(2, 2, path.Active), 2, 1098 * time.Millisecond},
		{"standby", 2, lanes(2, 1, path.Standby), 1, 10 * time.Second},
		{"a thousand in two racks", 1000, lanes(2, 500, path.Active), 41, 6907 * time.Millisecond},
		{"a thousand who share with nobody", 1000, lanes(1000, 1, path.Active), 1, 83333 * time.Millisecond},
	} {
		makePlan(c.nodes, c.lanes)
		if l := c.lanes[0]; l.sample != c.sample || l.period.Truncate(time.Millisecond) != c.period {
			t.Errorf("%s: %d each %v, want %d each %v", c.name, l.sample, l.period, c.sample, c.period)
		}
	}
}
