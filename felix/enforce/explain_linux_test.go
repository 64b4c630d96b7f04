// SPDX-License-Identifier: Apache-2.0

package enforce

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/heliograph-dev/heliograph/cni"
	"github.com/heliograph-dev/heliograph/cni/ipam"
	"github.com/heliograph-dev/heliograph/felix/feed"
	"github.com/heliograph-dev/heliograph/felix/iptables"
	"github.com/heliograph-dev/heliograph/felix/nftpolicy"
	"github.com/heliograph-dev/heliograph/felix/policytest"
	"github.com/heliograph-dev/heliograph/felix/watch"
	"github.com/heliograph-dev/heliograph/internal/nettest"
	"github.com/heliograph-dev/heliograph/policy"
	"github.com/heliograph-dev/heliograph/policy/compile"
	"github.com/heliograph-dev/heliograph/policy/eval"
	"github.com/heliograph-dev/heliograph/policy/explain"
)

// TestExplainIsWhatPacketsMeet: the same objects go to the agent's loop, with a kernel behind it, and to what
// `policy explain` asks. What that says of a question is what becomes of its packets. 10,000 questions for
// each renderer with HELIOGRAPH_LONG=1.
func TestExplainIsWhatPacketsMeet(t *testing.T) {
	questions := 2000
	if os.Getenv("HELIOGRAPH_LONG") == "1" {
		questions = 10_000
	}
	for _, tt := range []struct {
		name, tool string
		open       func() (Renderer, error)
	}{
		{"nftables", "nft", openNFTables},
		{"iptables-nft", "iptables-nft-restore", func() (Renderer, error) { return openIPTables(iptables.NFT) }},
		{"iptables-legacy", "iptables-legacy-restore", func() (Renderer, error) { return openIPTables(iptables.Legacy) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := exec.LookPath(tt.tool); err != nil {
				nettest.Skip(t, err.Error())
			}
			nettest.Run(t, func(t *testing.T) {
				a := newAskers(t, policytest.Seed(t, 0), tt.open)
				for a.asked < questions && !t.Failed() {
					a.world.next()
					a.tell()
					a.question()
					if len(a.wrong) > 0 {
						t.Errorf("%d packets met another fate, the first: %s\n%s", len(a.wrong), a.wrong[0], a.world)
					}
				}
				t.Logf("%d questions about %d worlds, %d packets of which %d allowed; %d by way of a service", a.asked, a.worlds, a.packets, a.allowed, a.translated)
				if !t.Failed() && (a.allowed < a.packets/10 || a.allowed > a.packets*9/10 || a.translated < questions/20) {
					t.Error("that is too little of something to say much")
				}
			})
		})
	}
}

func openNFTables() (Renderer, error) {
	k, err := nftpolicy.Open()
	if err != nil {
		return nil, err
	}
	return nftpolicy.New(k, slog.New(slog.DiscardHandler)), nil
}

func openIPTables(v iptables.Variant) (Renderer, error) {
	k, err := iptables.Open(v, iptables.NewRestores())
	if err != nil {
		return nil, err
	}
	return iptables.New(k, slog.New(slog.DiscardHandler)), nil
}

// askers are an agent of the lab's node, and who asks `policy explain`.
type askers struct {
	t        *testing.T
	lab      *policytest.Lab
	world    *world
	feed     *feed.Feed
	enforcer *Enforcer
	known    map[feed.Key]bool
	port     uint16 // source port of the last packet

	worlds, asked, packets, allowed, translated int
	wrong                                       []string
}

func newAskers(t *testing.T, seed uint64, open func() (Renderer, error)) *askers {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	journal, err := feed.OpenJournal(filepath.Join(t.TempDir(), "policy.db"), watch.FeedTypes(), log)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = journal.Close() })
	lab := policytest.NewLab(t)
	a := &askers{t: t, lab: lab, world: newWorld(lab, seed), feed: feed.New(), known: map[feed.Key]bool{}}
	a.enforcer, err = New(Options{
		Feed: a.feed, Journal: journal, Pods: a.attachments, Flows: &fakeFlows{}, Heart: noHeart{}, Log: log, Registerer: prometheus.NewRegistry(),
		Dataplanes:      []Dataplane{{Name: NFTables, Open: open}},
		Choice:          func() string { return NFTables },
		Names:           Names{Gate: &fakeGate{}, Want: func([]string) {}},
		Node:            "node",
		Failsafes:       func() compile.Failsafes { return compile.Failsafes{} },
		NodeAddresses:   func() ([]netip.Addr, error) { return lab.Node, nil },
		RefreshInterval: func() time.Duration { return time.Minute },
		Changed:         func() {},
	})
	if err != nil {
		t.Fatal(err)
	}
	nettest.Cmd(t, "ip", "route", "add", "10.96.0.0/16", "dev", "out0")
	nettest.Cmd(t, "ip", "route", "add", "fd00:96::/64", "dev", "out0")
	return a
}

func (a *askers) attachments() []ipam.Allocation {
	var out []ipam.Allocation
	for i, p := range a.lab.Pods {
		out = append(out, ipam.Allocation{
			Pod: cni.Pod{Namespace: namespace(i), Name: fmt.Sprint("p", i), UID: fmt.Sprint("u", i)}, Device: p.Device, Addresses: [2]netip.Addr{p.IPs[0], p.IPs[1]},
		})
	}
	return out
}

// tell lets the agent hear of what has changed, and enforce it.
func (a *askers) tell() {
	a.t.Helper()
	gone := a.known
	a.known = map[feed.Key]bool{}
	for _, o := range a.world.read(a.t) {
		kind := feed.Kind(o.Kind.Resource)
		if watch.FeedTypes()[kind] == nil {
			continue // services are of no interest to the agent
		}
		key := feed.KeyOf(kind, o.Object)
		a.feed.Put(key, o.Object)
		a.known[key] = true
		delete(gone, key)
	}
	for key := range gone {
		a.feed.Delete(key)
	}
	a.enforcer.once(a.t.Context())
	if err := a.enforcer.Ready(); err != nil || a.enforcer.lastErr != nil || len(a.enforcer.refused()) > 0 {
		a.t.Fatalf("%v, %v, refused %v\n%s", err, a.enforcer.lastErr, a.enforcer.refused(), a.world)
	}
	a.worlds++
}

// question asks about the world, and looks what becomes of the packets.
func (a *askers) question() {
	a.t.Helper()
	cluster := explain.NewCluster()
	for _, o := range a.world.read(a.t) {
		cluster.Put(o.Kind, o.Object)
	}
	view, err := explain.NewView(cluster)
	if err != nil {
		a.t.Fatal(err)
	}
	const perWorld = 60
	var expected []expectation
	for range perWorld {
		expected = append(expected, a.ask(view)...)
	}
	a.translate(expected)
	packets := make([]policytest.Packet, 0, len(expected))
	for _, e := range expected {
		packets = append(packets, e.packet)
	}
	for i, at := range a.lab.Pass(packets...) {
		a.compare(expected[i], at)
	}
}

// expectation is a packet, and what was said of it.
type expectation struct {
	packet   policytest.Packet
	verdict  explain.Verdict
	question string
	answer   *explain.Answer
}

// ask asks one question that has an answer, and returns the packets that it is about.
func (a *askers) ask(v *explain.View) []expectation {
	a.t.Helper()
	from, to := a.world.question()
	source, err := explain.ParseSource(from)
	if err != nil {
		a.t.Fatal(err)
	}
	target, err := explain.ParseTarget(to)
	if err != nil {
		a.t.Fatal(err)
	}
	answer, err := v.Explain(explain.Query{From: source, To: target})
	if err != nil {
		return nil // a port by a name that the pod does not have
	}
	var out []expectation
	for _, f := range answer.Flows {
		for _, dst := range f.Dst {
			if p, ok := a.packet(answer, f, dst, target.Protocol); ok {
				out = append(out, expectation{p, f.Verdict, from + " to " + to, answer})
			}
		}
	}
	if len(out) > 0 {
		a.asked++
	}
	return out
}

// packet is one that a flow is about; false if no pod has to do with it, or if nobody said where it comes from.
func (a *askers) packet(answer *explain.Answer, f explain.Flow, dst netip.Addr, protocol policy.Protocol) (policytest.Packet, bool) {
	is4 := dst.Is4()
	from := slices.IndexFunc(f.Src, func(ip netip.Addr) bool { return ip.Is4() == is4 })
	if from < 0 {
		return policytest.Packet{}, false
	}
	a.port = max(a.port+1, 49152) // each is of a flow of its own
	p := policytest.Packet{Packet: eval.Packet{Src: f.Src[from], Dst: dst, Protocol: protocol}}
	p.From, p.To = a.endOf(p.Src), a.endOf(p.Dst)
	p.FromNode = p.From == policytest.Node
	switch {
	case protocol.HasPorts():
		p.SrcPort, p.DstPort = a.port, f.Port
	case is4:
		p.ICMPType = 8
	default:
		p.Protocol, p.ICMPType = policy.ICMPv6, 128
	}
	if s := answer.Service; s != nil {
		at := slices.IndexFunc(s.IPs, func(ip netip.Addr) bool { return ip.Is4() == is4 })
		p.Via = netip.AddrPortFrom(s.IPs[at], uint16(s.Port)) //nolint:gosec // a port
	}
	return p, p.From >= 0 || p.To >= 0
}

func (a *askers) endOf(ip netip.Addr) policytest.End {
	if slices.Contains(a.lab.Node, ip) {
		return policytest.Node
	}
	at := slices.IndexFunc(a.lab.Pods, func(p policytest.Pod) bool { return slices.Contains(p.IPs, ip) })
	return policytest.End(at) // Outside, if there is none
}

// translate has the node do as a service proxy that has chosen an endpoint for each packet.
func (a *askers) translate(expected []expectation) {
	a.t.Helper()
	var rules strings.Builder
	rules.WriteString("add table inet services\ndelete table inet services\ntable inet services {\n chain endpoints {\n")
	for _, e := range expected {
		p := e.packet
		if !p.Via.IsValid() {
			continue
		}
		a.translated++
		ip := map[bool]string{true: "ip", false: "ip6"}[p.Dst.Is4()]
		transport := strings.ToLower(p.Protocol.String())
		fmt.Fprintf(&rules, "%s daddr %s %s sport %d dnat %s to %s\n", ip, p.Via.Addr(), transport, p.SrcPort, ip, netip.AddrPortFrom(p.Dst, p.DstPort))
	}
	rules.WriteString(" }\n chain prerouting { type nat hook prerouting priority -100; jump endpoints; }\n chain output { type nat hook output priority -100; jump endpoints; }\n}\n")
	file := filepath.Join(a.t.TempDir(), "services.nft")
	if err := os.WriteFile(file, []byte(rules.String()), 0o600); err != nil {
		a.t.Fatal(err)
	}
	nettest.Cmd(a.t, "nft", "-f", file)
}

func (a *askers) compare(e expectation, at []policytest.End) {
	a.t.Helper()
	a.packets++
	want := []policytest.End{}
	if e.verdict == explain.Allowed {
		a.allowed++
		want = append(want, e.packet.To)
	}
	if slices.Equal(at, want) {
		return
	}
	answer, err := json.MarshalIndent(e.answer, "", " ")
	if err != nil {
		a.t.Fatal(err)
	}
	a.wrong = append(a.wrong, fmt.Sprintf("%s: explained as %s, but %s arrived at %v\n%s", e.question, e.verdict, e.packet, at, answer))
}

// TestWrongExplanationsAreSeen: an agent that was not told of the last changes does otherwise than is explained.
func TestWrongExplanationsAreSeen(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		a := newAskers(t, policytest.Seed(t, 0), openNFTables)
		a.world.next()
		a.tell()
		for range 3 {
			a.world.next()
			a.question()
		}
		if len(a.wrong) == 0 {
			t.Errorf("%d packets say nothing against it", a.packets)
		}
	})
}
