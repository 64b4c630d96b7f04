// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"context"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/heliograph-dev/heliograph/felix/kernel"
)

// Restores are the changes that we have iptables-nft make, so that Monitor tells them from those of others. It is
// safe for concurrent use. Of legacy tables, and of ipsets, the kernel tells nobody.
type Restores struct {
	begun func() // once
	first chan struct{}

	mu   sync.Mutex
	pids [16]int // of the last processes
	next int
}

// NewRestores returns those of a process that has made none.
func NewRestores() *Restores {
	r := &Restores{first: make(chan struct{})}
	r.begun = sync.OnceFunc(func() { close(r.first) })
	return r
}

// add notes a process that is about to change rules.
func (r *Restores) add(pid int) {
	r.begun()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pids[r.next] = pid
	r.next = (r.next + 1) % len(r.pids)
}

// own says whether a netlink socket is one of those processes': the first that a process opens has its number. What
// it takes for ours and is not, since numbers come again, is found by the next look at all rules.
func (r *Restores) own(portID uint32) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Contains(r.pids[:], int(portID))
}

// Monitor calls poke whenever somebody else has changed our chains, or those of the kernel that jump to them,
// until ctx ends. It begins to listen when the first change is made.
func (r *Restores) Monitor(ctx context.Context, poke func()) error {
	select {
	case <-ctx.Done():
		return nil
	case <-r.first:
	}
	return kernel.MonitorNFTables(ctx, concerns, r.own, poke)
}

// concerns leaves out what others do in chains of their own: kube-proxy may change hundreds every second.
func concerns(e kernel.NFTEvent) bool {
	if e.Table != "filter" || e.Family != unix.NFPROTO_IPV4 && e.Family != unix.NFPROTO_IPV6 {
		return false
	}
	_, jumps := hooks()[e.Chain]
	return jumps || isOurs(e.Chain) || e.Kind == unix.NFT_MSG_DELTABLE
}
