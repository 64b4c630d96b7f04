// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/heliograph-dev/heliograph/cni"
	"github.com/heliograph-dev/heliograph/cni/ipam"
)

var (
	quiet  = slog.New(slog.DiscardHandler)
	plain  = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	plainP = cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
	start  = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	blocks = []ipam.Block{
		{Name: "four", CIDR: netip.MustParsePrefix("10.244.0.0/26"), Pool: "p4", Primary: true},
		{Name: "six", CIDR: netip.MustParsePrefix("fd00:244::/122"), Pool: "p6", Primary: true},
	}
)

func att(n int) cni.Attachment {
	return cni.Attachment{ContainerID: fmt.Sprintf("c%d", n), IfName: "eth0"}
}

func req(n int) ipam.Request {
	return ipam.Request{Attachment: att(n), Network: "net", Device: fmt.Sprintf("hel%03d", n), Pod: cni.Pod{Namespace: "d", Name: fmt.Sprint(n), UID: "u"}}
}

func open(t *testing.T, o Options) *Store {
	t.Helper()
	o.Log = quiet
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func mustAllocate(t *testing.T, s *Store, n int) ipam.Allocation {
	t.Helper()
	x, _, err := s.Allocate(req(n))
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func TestAllocationsSurviveACrash(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state", "ipam.db")
	s := open(t, Options{Path: path, Now: func() time.Time { return start }})
	if _, _, err := s.Allocate(req(1)); !errors.Is(err, ipam.ErrNotReady) {
		t.Errorf("before SetBlocks: %v", err)
	}
	if err := s.SetBlocks(blocks); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		mustAllocate(t, s, i)
	}
	if _, ok, err := s.Release(att(3)); !ok || err != nil {
		t.Fatal(err)
	}
	want := s.Attachments()
	crashed := path + ".crashed" // a copy without Close is what a crash leaves
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(crashed, b, 0o600); err != nil {
		t.Fatal(err)
	}

	again := open(t, Options{Path: crashed, Now: func() time.Time { return start.Add(time.Second) }})
	if diff := cmp.Diff(want, again.Attachments(), plain); diff != "" || again.Problem() != "" {
		t.Errorf("problem %q (-want +got):\n%s", again.Problem(), diff)
	}
	orphans := []ipam.BlockUsage{
		{Name: "four", CIDR: blocks[0].CIDR, Pool: "p4", InUse: 4, CoolingDown: 1, Capacity: 62, Orphan: true},
		{Name: "six", CIDR: blocks[1].CIDR, Pool: "p6", InUse: 4, CoolingDown: 1, Capacity: 62, Orphan: true},
	}
	if diff := cmp.Diff(orphans, again.Usage(), plainP); diff != "" {
		t.Errorf("usage before blocks are known (-want +got):\n%s", diff)
	}
	if err := again.SetBlocks(blocks); err != nil {
		t.Fatal(err)
	}
	want[0].Addresses[0] = netip.MustParseAddr("10.244.0.7") // never used; not 10.244.0.5, which cools down
	if x := mustAllocate(t, again, 9); x.Addresses[0] != want[0].Addresses[0] {
		t.Errorf("allocated %s, want %s", x.Addresses[0], want[0].Addresses[0])
	}
}

func TestOneOwnerAtATime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ipam.db")
	open(t, Options{Path: path})
	if _, err := Open(Options{Path: path, Log: quiet}); err == nil || !strings.Contains(err.Error(), "another process has it") {
		t.Errorf("err = %v", err)
	}
}

func TestCooldownSurvivesARestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ipam.db")
	now := start
	o := Options{Path: path, Now: func() time.Time { return now }, Cooldown: time.Minute}
	small := []ipam.Block{{Name: "s", CIDR: netip.MustParsePrefix("10.0.0.0/31")}}
	s := open(t, o)
	if err := s.SetBlocks(small); err != nil {
		t.Fatal(err)
	}
	mustAllocate(t, s, 1)
	if _, _, err := s.Release(att(1)); err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
	now = start.Add(-24 * time.Hour) // the clock is set back during the restart
	s = open(t, o)
	if err := s.SetBlocks(small); err != nil {
		t.Fatal(err)
	}
	now = now.Add(59 * time.Second)
	var none *ipam.NoAddressError
	if _, _, err := s.Allocate(req(2)); !errors.As(err, &none) {
		t.Errorf("too early: %v", err)
	}
	now = now.Add(time.Second)
	mustAllocate(t, s, 2)
}

// TestDamagedFiles damages a file in every way that comes to mind. Open must neither fail nor crash,
// and have either what the file held or what the kernel says, and say so.
func TestDamagedFiles(t *testing.T) {
	dir := t.TempDir()
	good := filepath.Join(dir, "good")
	s := open(t, Options{Path: good})
	if err := s.SetBlocks(blocks); err != nil {
		t.Fatal(err)
	}
	for i := range 60 {
		mustAllocate(t, s, i)
	}
	var before []ipam.Allocation
	for i := range 20 {
		before = s.Attachments()
		if _, _, err := s.Release(att(i)); err != nil {
			t.Fatal(err)
		}
	}
	want := s.Attachments()
	_ = s.Close()
	whole, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	kernel := func() ([]ipam.Allocation, error) { return want, nil }
	try := func(name string, content []byte) {
		t.Helper()
		path := filepath.Join(dir, "try", "ipam.db")
		_ = os.RemoveAll(filepath.Dir(path))
		_ = os.MkdirAll(filepath.Dir(path), 0o700)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(Options{Path: path, Log: quiet, Kernel: kernel})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			return
		}
		defer func() { _ = s.Close() }()
		times := cmp.Comparer(time.Time.Equal)
		// A torn meta page is what a crash leaves, so bbolt goes back by one commit, whole. The device of an
		// attachment that is then too many is missing, by which workload.Manager.Sweep knows it.
		if diff := cmp.Diff(want, s.Attachments(), plain, times); diff != "" && !cmp.Equal(before, s.Attachments(), plain, times) {
			t.Errorf("%s: (-want +got):\n%s", name, diff)
		}
		aside, _ := filepath.Glob(path + ".corrupt-*")
		if (s.Problem() == "") != (len(aside) == 0) {
			t.Errorf("%s: problem %q, but %v are aside", name, s.Problem(), aside)
		}
		if err := s.SetBlocks(blocks); err != nil {
			t.Errorf("%s: set blocks: %v", name, err)
		}
		if _, _, err := s.Allocate(req(1000)); err != nil {
			t.Errorf("%s: allocate: %v", name, err)
		}
	}
	try("empty", nil)
	try("zeros", make([]byte, len(whole)))
	try("text", []byte("this is not a database\n"))
	page := os.Getpagesize()
	for n := 1; n < len(whole); n += page/2 + 13 {
		try(fmt.Sprintf("truncated to %d", n), whole[:n])
	}
	for at := 0; at+page <= len(whole); at += page {
		for _, from := range []int{0, page, 2 * page, 3 * page, len(whole) - page} {
			b := append([]byte(nil), whole...)
			copy(b[at:at+page], whole[from:from+page])
			try(fmt.Sprintf("page %d is page %d", at/page, from/page), b)
		}
	}
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 150 {
		b := append([]byte(nil), whole...)
		at, n := r.IntN(len(b)), 1<<r.IntN(12)
		for j := at; j < min(at+n, len(b)); j++ {
			b[j] = byte(r.Uint32())
		}
		try(fmt.Sprintf("%d: garbage in %d bytes at %d", i, n, at), b)
	}
}

func TestDamageWhileRunning(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ipam.db")
	s := open(t, Options{Path: path})
	if err := s.SetBlocks(blocks); err != nil {
		t.Fatal(err)
	}
	for i := range 30 {
		mustAllocate(t, s, i)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, info.Size()), 0); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	for i := range 5 {
		mustAllocate(t, s, 100+i)
	}
	want := s.Attachments()
	if s.Problem() == "" {
		t.Error("the damage is not reported")
	}
	_ = s.Close()
	again := open(t, Options{Path: path})
	if diff := cmp.Diff(want, again.Attachments(), plain); diff != "" {
		t.Errorf("after a restart (-want +got):\n%s", diff)
	}
}

func TestKernelKnowsMore(t *testing.T) {
	known := ipam.Allocation{Attachment: att(1), Device: "hel001", Addresses: [2]netip.Addr{netip.MustParseAddr("10.244.0.2"), netip.MustParseAddr("fd00:244::2")}}
	other := ipam.Allocation{Attachment: att(2), Device: "hel002", Addresses: [2]netip.Addr{netip.MustParseAddr("10.244.0.9"), {}}}
	clash := ipam.Allocation{Attachment: att(3), Device: "hel003", Addresses: known.Addresses}
	path := filepath.Join(t.TempDir(), "ipam.db")
	s := open(t, Options{Path: path, Kernel: func() ([]ipam.Allocation, error) { return []ipam.Allocation{known, other, clash}, nil }})
	if got := s.Attachments(); len(got) != 2 || got[1].Addresses != other.Addresses || got[1].Created.IsZero() {
		t.Errorf("attachments = %+v", got)
	}
	if p := s.Problem(); !strings.Contains(p, "cannot take hel003 over") || !strings.Contains(p, "took 2 of 3") {
		t.Errorf("problem = %q", p)
	}
	_ = s.Close()
	again := open(t, Options{Path: path})
	if len(again.Attachments()) != 2 {
		t.Errorf("not on disk: %+v", again.Attachments())
	}
	if _, err := Open(Options{Path: path + "2", Log: quiet, Kernel: func() ([]ipam.Allocation, error) { return nil, errors.New("no") }}); err == nil {
		t.Error("opened without knowing what the kernel has")
	}
}

func TestConcurrentUse(t *testing.T) {
	s := open(t, Options{Path: filepath.Join(t.TempDir(), "ipam.db"), Cooldown: -1})
	if err := s.SetBlocks(blocks); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			for range 5 {
				if _, _, err := s.Allocate(req(i)); err != nil {
					t.Error(err)
				}
				_ = s.Usage()
				if _, _, err := s.Release(att(i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got := s.Attachments(); len(got) != 0 {
		t.Errorf("left: %+v", got)
	}
}

func BenchmarkAllocateRelease(b *testing.B) {
	for _, workers := range []int{1, 8, 50} {
		b.Run(fmt.Sprint(workers), func(b *testing.B) {
			s, err := Open(Options{Path: filepath.Join(b.TempDir(), "ipam.db"), Cooldown: -1, Log: quiet})
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = s.Close() }()
			_ = s.SetBlocks(blocks)
			b.SetParallelism(max(workers/2, 1))
			var id sync.Mutex
			next := 0
			b.RunParallel(func(p *testing.PB) {
				id.Lock()
				next++
				mine := next
				id.Unlock()
				for p.Next() {
					if _, _, err := s.Allocate(req(mine)); err != nil {
						b.Error(err)
					}
					_, _, _ = s.Release(att(mine))
				}
			})
		})
	}
}
