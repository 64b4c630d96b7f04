// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/heliograph-dev/heliograph/cni"
)

var (
	start = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	addrs = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
)

func att(n int) cni.Attachment {
	return cni.Attachment{ContainerID: fmt.Sprintf("c%d", n), IfName: "eth0"}
}

func req(n int) Request { return Request{Attachment: att(n), Device: fmt.Sprintf("hel%d", n)} }

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func ips(v4, v6 string) (x [2]netip.Addr) {
	if v4 != "" {
		x[IPv4] = netip.MustParseAddr(v4)
	}
	if v6 != "" {
		x[IPv6] = netip.MustParseAddr(v6)
	}
	return x
}

func dual() *Allocator {
	a := New(DefaultCooldown)
	a.SetBlocks([]Block{
		{Name: "a", CIDR: prefix("10.244.0.0/29"), Primary: true},
		{Name: "b", CIDR: prefix("fd00:244::/125"), Primary: true},
	})
	return a
}

func TestAllocate(t *testing.T) {
	for _, tc := range []struct {
		name   string
		blocks []Block
		want   []string // of successive attachments; an error's text if it is one
	}{
		{
			"first addresses of primary blocks are kept",
			[]Block{{CIDR: prefix("10.0.0.0/30"), Primary: true}, {CIDR: prefix("fd00::/126"), Primary: true}},
			[]string{
				"10.0.0.2 fd00::2", "10.0.0.3 fd00::3",
				"no IPv4 address left on this node: blocks 10.0.0.0/30 (2 of 2 in use, 0 cooling down); the controller assigns another block shortly",
			},
		},
		{
			"both or none",
			[]Block{{CIDR: prefix("10.0.0.0/29")}, {CIDR: prefix("fd00::/127")}},
			[]string{"10.0.0.1 fd00::1", "no IPv6 address left on this node: blocks fd00::/127 (1 of 1 in use, 0 cooling down); the controller assigns another block shortly"},
		},
		{
			"primary first, then in order",
			[]Block{{CIDR: prefix("10.0.0.0/31")}, {CIDR: prefix("10.0.1.0/31")}, {CIDR: prefix("10.0.2.0/30"), Primary: true}},
			[]string{"10.0.2.2 -", "10.0.2.3 -", "10.0.0.1 -", "10.0.1.1 -"},
		},
		{
			"nothing new of a block that is given back",
			[]Block{{CIDR: prefix("10.0.0.0/30"), Releasing: true}, {CIDR: prefix("10.0.1.0/30")}},
			[]string{"10.0.1.1 -"},
		},
		{
			"a family whose pool is disabled is not missed",
			[]Block{{CIDR: prefix("10.0.0.0/30")}, {CIDR: prefix("fd00::/126"), PoolDisabled: true}},
			[]string{"10.0.0.1 -"},
		},
		{
			"a single address is the network's",
			[]Block{{CIDR: prefix("10.0.0.9/32")}},
			[]string{"no IPv4 address left on this node: blocks 10.0.0.9/32 (0 of 0 in use, 0 cooling down); the controller assigns another block shortly"},
		},
		{
			"overlapping blocks count once",
			[]Block{{CIDR: prefix("10.0.0.0/31"), Primary: true}, {CIDR: prefix("10.0.0.0/30")}},
			[]string{"no IPv4 address left on this node: blocks 10.0.0.0/31 (0 of 0 in use, 0 cooling down); the controller assigns another block shortly"},
		},
		{"a huge block", []Block{{CIDR: prefix("fd00::/64")}}, []string{"- fd00::1", "- fd00::2"}},
		{"no block at all", nil, []string{"no IPv4 address: this node has no IPv4 block yet; the controller assigns one shortly"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := New(DefaultCooldown)
			a.SetBlocks(tc.blocks)
			for i, want := range tc.want {
				x, fresh, err := a.Allocate(start, req(i))
				got := ""
				if err != nil {
					got = err.Error()
				} else {
					for f, ip := range x.Addresses {
						if f > 0 {
							got += " "
						}
						if ip.IsValid() {
							got += ip.String()
						} else {
							got += "-"
						}
					}
				}
				if got != want || fresh != (err == nil) {
					t.Errorf("attachment %d: got %q (fresh %v), want %q", i, got, fresh, want)
				}
			}
		})
	}
}

func TestAllocateBeforeBlocksAreKnown(t *testing.T) {
	a := New(DefaultCooldown)
	if _, _, err := a.Allocate(start, req(1)); !errors.Is(err, ErrNotReady) {
		t.Errorf("err = %v, want ErrNotReady", err)
	}
}

func TestAllocateIsIdempotent(t *testing.T) {
	a := dual()
	first, _, _ := a.Allocate(start, req(1))
	a.SetBlocks([]Block{{Name: "a", CIDR: prefix("10.244.0.0/29"), Primary: true, Releasing: true}})
	again, fresh, err := a.Allocate(start.Add(time.Hour), req(1))
	if err != nil || fresh {
		t.Errorf("fresh %v, err %v", fresh, err)
	}
	if diff := cmp.Diff(first, again, addrs); diff != "" {
		t.Errorf("(-first +again):\n%s", diff)
	}
}

func TestRequiredFamilyWithoutBlock(t *testing.T) {
	a := New(DefaultCooldown)
	a.SetBlocks([]Block{{CIDR: prefix("10.0.0.0/30")}})
	a.RequireFamilies(true, true)
	_, _, err := a.Allocate(start, req(1))
	want := "no IPv6 address: this node has no IPv6 block yet; the controller assigns one shortly"
	if err == nil || err.Error() != want {
		t.Errorf("err = %v, want %q", err, want)
	}
	if len(a.Allocations()) != 0 {
		t.Error("an allocation is left")
	}
}

func TestReleasedAddressesCoolDownAndComeBackLongestFreeFirst(t *testing.T) {
	a := New(30 * time.Second)
	a.SetBlocks([]Block{{Name: "a", CIDR: prefix("10.0.0.0/30")}})
	for i := range 3 {
		if _, _, err := a.Allocate(start, req(i)); err != nil {
			t.Fatal(err)
		}
	}
	a.Release(start.Add(1*time.Second), att(2))
	a.Release(start.Add(2*time.Second), att(0))
	if _, _, err := a.Allocate(start.Add(30*time.Second), req(9)); err == nil {
		t.Error("an address was reused before its cooldown")
	}
	want := []BlockUsage{{Name: "a", CIDR: prefix("10.0.0.0/30"), InUse: 1, CoolingDown: 2, Capacity: 3}}
	if diff := cmp.Diff(want, a.Usage(start.Add(30*time.Second)), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("usage (-want +got):\n%s", diff)
	}
	for i, want := range []string{"10.0.0.3", "10.0.0.1"} {
		x, _, err := a.Allocate(start.Add(32*time.Second), req(10+i))
		if err != nil || x.Addresses != ips(want, "") {
			t.Errorf("got %v, %v, want %s", x.Addresses, err, want)
		}
	}
}

func TestClockSteps(t *testing.T) {
	for _, tc := range []struct {
		name string
		step time.Duration
		wait time.Duration // after the step until all is free; at most one cooldown
	}{
		{"back by a year", -365 * 24 * time.Hour, 30 * time.Second},
		{"back by a second", -time.Second, 30 * time.Second},
		{"forward by a year", 365 * 24 * time.Hour, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := New(30 * time.Second)
			a.SetBlocks([]Block{{CIDR: prefix("10.0.0.0/30")}})
			for i := range 3 {
				_, _, _ = a.Allocate(start, req(i))
			}
			for i := range 3 {
				a.Release(start, att(i))
			}
			now := start.Add(tc.step)
			a.Usage(now) // any look at the clock
			now = now.Add(tc.wait)
			for i := range 3 {
				if _, _, err := a.Allocate(now, req(10+i)); err != nil {
					t.Errorf("%d: %v", i, err)
				}
			}
		})
	}
}

func TestRestoredReleasesOfTheFutureRestOneCooldown(t *testing.T) {
	a := New(30 * time.Second)
	a.RestoreReleased(start, netip.MustParseAddr("10.0.0.1"), start.Add(48*time.Hour))
	a.RestoreReleased(start, netip.MustParseAddr("10.0.0.2"), start.Add(-time.Minute))
	a.SetBlocks([]Block{{CIDR: prefix("10.0.0.0/30")}})
	for i, want := range []string{"10.0.0.3", "10.0.0.2"} {
		if x, _, err := a.Allocate(start, req(i)); err != nil || x.Addresses != ips(want, "") {
			t.Errorf("got %v, %v, want %s", x.Addresses, err, want)
		}
	}
	if _, _, err := a.Allocate(start.Add(29*time.Second), req(7)); err == nil {
		t.Error("reused too early")
	}
	if x, _, err := a.Allocate(start.Add(30*time.Second), req(7)); err != nil || x.Addresses != ips("10.0.0.1", "") {
		t.Errorf("got %v, %v", x.Addresses, err)
	}
}

func TestUndoLeaksNothing(t *testing.T) {
	a := dual()
	for i := range 100 {
		if _, _, err := a.Allocate(start, req(i)); err != nil {
			t.Fatalf("%d: %v", i, err)
		}
		a.Undo(att(i))
	}
}

func TestOrphans(t *testing.T) {
	a := New(DefaultCooldown)
	a.SetBlocks([]Block{{Name: "a", CIDR: prefix("10.0.0.0/30")}})
	_, _, _ = a.Allocate(start, req(1))
	_, _, _ = a.Allocate(start, req(2))
	a.Release(start, att(2))
	if got := a.SetBlocks([]Block{{Name: "b", CIDR: prefix("10.0.1.0/30")}}); len(got) != 1 || got[0] != netip.MustParseAddr("10.0.0.2") {
		t.Errorf("forgotten = %v", got)
	}
	want := []BlockUsage{
		{Name: "b", CIDR: prefix("10.0.1.0/30"), Capacity: 3},
		{Name: "a", CIDR: prefix("10.0.0.0/30"), InUse: 1, Capacity: 3, Orphan: true},
	}
	prefixes := cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
	if diff := cmp.Diff(want, a.Usage(start), prefixes); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if a.Releasable(start, "a") {
		t.Error("an orphan in use is releasable")
	}
	if x, _, _ := a.Allocate(start, req(3)); x.Addresses != ips("10.0.1.1", "") {
		t.Errorf("got %v, want one of the node's own block", x.Addresses)
	}
	a.Release(start, att(1))
	if diff := cmp.Diff([]BlockUsage{{Name: "b", CIDR: prefix("10.0.1.0/30"), InUse: 1, Capacity: 3}}, a.Usage(start), prefixes); diff != "" {
		t.Errorf("after release (-want +got):\n%s", diff)
	}
}

func TestReleasable(t *testing.T) {
	blocks := func(releasing bool) []Block {
		return []Block{{Name: "a", CIDR: prefix("10.0.0.0/30"), Releasing: releasing}}
	}
	a := New(DefaultCooldown)
	a.SetBlocks(blocks(false))
	if a.Releasable(start, "a") {
		t.Error("a block is releasable that may still be used")
	}
	_, _, _ = a.Allocate(start, req(1))
	a.SetBlocks(blocks(true))
	if a.Releasable(start, "a") {
		t.Error("a block in use is releasable")
	}
	a.Release(start, att(1))
	if a.Releasable(start.Add(DefaultCooldown-1), "a") {
		t.Error("a block is releasable whose address cools down")
	}
	if !a.Releasable(start.Add(DefaultCooldown), "a") {
		t.Error("an empty block is not releasable")
	}
	if !a.Releasable(start, "unknown") {
		t.Error("an unknown block is not releasable")
	}
}

func TestRestoreRefusesConflicts(t *testing.T) {
	a := New(DefaultCooldown)
	x := Allocation{Attachment: att(1), Addresses: ips("10.0.0.1", "")}
	if err := a.Restore(x); err != nil {
		t.Fatal(err)
	}
	if err := a.Restore(x); err != nil {
		t.Errorf("the same again: %v", err)
	}
	if err := a.Restore(Allocation{Attachment: att(2), Addresses: ips("10.0.0.1", "")}); err == nil {
		t.Error("an address has two owners")
	}
	if err := a.Restore(Allocation{Attachment: att(1), Addresses: ips("10.0.0.2", "")}); err == nil {
		t.Error("an attachment has two addresses")
	}
	a.SetBlocks([]Block{{CIDR: prefix("10.0.0.0/30")}})
	if got, _, _ := a.Allocate(start, req(3)); got.Addresses != ips("10.0.0.2", "") {
		t.Errorf("got %v", got.Addresses)
	}
}

// FuzzAllocator drives an allocator with arbitrary steps, time going both ways, and checks after
// each what must always hold.
func FuzzAllocator(f *testing.F) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 1))
		b := make([]byte, 400)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, steps []byte) {
		m := newModel()
		for len(steps) >= 2 {
			m.step(t, steps[0], int(steps[1]))
			m.check(t)
			steps = steps[2:]
		}
	})
}

// model is what the outside world remembers.
type model struct {
	a        *Allocator
	now      time.Time
	blocks   []Block
	released map[netip.Addr]time.Time
}

func newModel() *model {
	return &model{a: New(10 * time.Second), now: start, released: map[netip.Addr]time.Time{}}
}

func (m *model) step(t *testing.T, verb byte, n int) {
	t.Helper()
	switch verb % 8 {
	case 0, 1, 2, 3:
		_, known := m.a.Get(att(n % 16))
		x, fresh, err := m.a.Allocate(m.now, req(n%16))
		if err != nil || !fresh {
			if known && err != nil {
				t.Fatalf("a known attachment got %v", err)
			}
			return
		}
		m.checkFresh(t, x)
	case 4:
		x, ok := m.a.Release(m.now, att(n%16))
		for _, ip := range x.Addresses {
			if ok && ip.IsValid() {
				m.released[ip] = m.now
			}
		}
	case 5:
		m.now = m.now.Add(time.Duration(n) * 100 * time.Millisecond)
	case 6:
		if n%8 == 0 {
			m.now = m.now.Add(-time.Hour)
			m.released = map[netip.Addr]time.Time{} // bounds after a step are tested elsewhere
			return
		}
		if x, fresh, err := m.a.Allocate(m.now, req(100)); err == nil && fresh {
			m.checkFresh(t, x)
			m.a.Undo(att(100))
		}
	case 7:
		m.blocks = nil
		for i, cidr := range []string{"10.0.0.0/29", "10.0.0.8/30", "10.0.0.16/30", "fd00::/125", "fd00::8/126"} {
			if n&(1<<i) != 0 {
				m.blocks = append(m.blocks, Block{Name: cidr, CIDR: prefix(cidr), Primary: i == 0 || i == 3, Releasing: n&32 != 0 && i == 1})
			}
		}
		for _, ip := range m.a.SetBlocks(m.blocks) {
			delete(m.released, ip)
		}
	}
}

// checkFresh checks an allocation against the blocks and the cooldown.
func (m *model) checkFresh(t *testing.T, x Allocation) {
	t.Helper()
	for _, ip := range x.Addresses {
		if !ip.IsValid() {
			continue
		}
		inside := false
		for _, b := range m.blocks {
			if !b.CIDR.Contains(ip) {
				continue
			}
			inside = !b.Releasing && ip != b.CIDR.Addr() && (!b.Primary || ip != NodeAddress(b.CIDR))
		}
		if !inside {
			t.Fatalf("%s is not to be given out: blocks %v", ip, m.blocks)
		}
		if at, ok := m.released[ip]; ok && m.now.Sub(at) < 10*time.Second {
			t.Fatalf("%s comes back %s after its release", ip, m.now.Sub(at))
		}
	}
}

// check checks that no address is had twice, and that the counts add up.
func (m *model) check(t *testing.T) {
	t.Helper()
	seen := map[netip.Addr]cni.Attachment{}
	for _, x := range m.a.Allocations() {
		for _, ip := range x.Addresses {
			if other, twice := seen[ip]; twice && ip.IsValid() {
				t.Fatalf("%s is had by %v and %v", ip, other, x.Attachment)
			}
			seen[ip] = x.Attachment
		}
	}
	delete(seen, netip.Addr{})
	inUse := 0
	for _, u := range m.a.Usage(m.now) {
		inUse += u.InUse
		if !u.Orphan && u.InUse+u.CoolingDown > u.Capacity {
			t.Fatalf("usage %+v is more than there is", u)
		}
	}
	if inUse != len(seen) {
		t.Fatalf("usage counts %d, %d are had", inUse, len(seen))
	}
}

func BenchmarkAllocateRelease(b *testing.B) {
	a := New(0)
	var blocks []Block
	for i := range 8 {
		blocks = append(blocks, Block{CIDR: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i), 0}), 26)})
	}
	a.SetBlocks(blocks)
	for i := range 400 {
		_, _, _ = a.Allocate(start, req(i))
	}
	r := req(-1)
	for b.Loop() {
		_, _, _ = a.Allocate(start, r)
		a.Release(start, r.Attachment)
	}
}
