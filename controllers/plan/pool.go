// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/labels"
)

// Block sizes of a pool that does not say.
const (
	defaultBits4 = 26
	defaultBits6 = 122
)

// maxCapacity is the largest block count that survives JSON, whose numbers are doubles.
const maxCapacityBits = 53

// maxNamed is how many nodes a message names.
const maxNamed = 5

// pool is an IPPool, judged.
type pool struct {
	name     string
	created  time.Time
	cidr     netip.Prefix // the zero Prefix: not a network
	bits     int
	selector labels.Selector
	disabled bool
	// reason and message why it is not in force; reason is empty if it is.
	reason, message string

	free *cursor // made when first needed

	blocks, inUse int64
	// Names of nodes that want a block which no pool could give.
	without, full, spareless []string
}

// judge parses the pools and refuses those that cannot be in force. It returns them by name.
// An older pool wins over one that overlaps it. Creation times are whole seconds, so of two pools
// of one second the one that nodes already hold blocks of counts as older, then the first by name.
func judge(objs []v1alpha1.IPPool, blocks []v1alpha1.IPBlock) []*pool {
	held := make(map[string]bool, len(objs))
	for i := range blocks {
		held[blocks[i].Spec.Pool] = true
	}
	pools := make([]*pool, 0, len(objs))
	for i := range objs {
		pools = append(pools, parsePool(&objs[i]))
	}
	slices.SortFunc(pools, func(a, b *pool) int {
		return cmp.Or(a.created.Compare(b.created), -compareBool(held[a.name], held[b.name]), cmp.Compare(a.name, b.name))
	})
	for i, pl := range pools {
		for _, older := range pools[:i] {
			if pl.cidr.IsValid() && older.cidr.IsValid() && pl.cidr.Overlaps(older.cidr) {
				pl.reason = v1alpha1.ReasonOverlap
				pl.message = fmt.Sprintf("overlaps the older pool %s (%s): no block of it is given to a node", older.name, older.cidr)
				break
			}
		}
	}
	slices.SortFunc(pools, func(a, b *pool) int { return cmp.Compare(a.name, b.name) })
	return pools
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

func parsePool(obj *v1alpha1.IPPool) *pool {
	pl := &pool{
		name:     obj.Name,
		created:  obj.CreationTimestamp.Time,
		disabled: obj.Spec.Disabled || obj.DeletionTimestamp != nil,
	}
	cidr, err := netip.ParsePrefix(obj.Spec.CIDR)
	if err != nil || cidr != cidr.Masked() || cidr.Addr().Is4In6() {
		pl.invalid(fmt.Sprintf("cidr %q is not a network in CIDR notation without host bits", obj.Spec.CIDR))
		return pl
	}
	pl.cidr = cidr
	pl.bits = defaultBits4
	if familyOf(cidr) == ipv6 {
		pl.bits = defaultBits6
	}
	if obj.Spec.BlockSize != nil {
		pl.bits = int(*obj.Spec.BlockSize)
	}
	if pl.bits < cidr.Bits() || pl.bits >= cidr.Addr().BitLen() {
		pl.invalid(fmt.Sprintf("blockSize %d is impossible in %s: at least %d, at most %d, since the first address of a block is never given out",
			pl.bits, cidr, cidr.Bits(), cidr.Addr().BitLen()-1))
		return pl
	}
	pl.selector, err = labels.Parse(obj.Spec.NodeSelector)
	if err != nil {
		pl.invalid(fmt.Sprintf("nodeSelector: %v", err))
	}
	return pl
}

func (pl *pool) invalid(message string) {
	pl.reason, pl.message = v1alpha1.ReasonInvalid, message
}

// cuts says whether the range is a block of this pool: a pool that was deleted and made again with
// another cidr or blockSize does not take over the blocks of its predecessor.
func (pl *pool) cuts(cidr netip.Prefix) bool {
	return pl.cidr.IsValid() && cidr.Bits() == pl.bits && pl.cidr.Overlaps(cidr) && cidr == cidr.Masked()
}

// serves says whether the pool may give the node new blocks.
func (pl *pool) serves(n *node, f family) bool {
	return pl.reason == "" && !pl.disabled && familyOf(pl.cidr) == f && pl.selector.Matches(n.Labels)
}

// capacity is how many blocks the pool has, at most 2^53.
func (pl *pool) capacity() int64 {
	if !pl.cidr.IsValid() || pl.bits < pl.cidr.Bits() {
		return 0
	}
	return int64(1) << min(pl.bits-pl.cidr.Bits(), maxCapacityBits)
}

func (pl *pool) state() PoolState {
	s := PoolState{Name: pl.name, Blocks: pl.blocks, Capacity: pl.capacity(), InUse: pl.inUse}
	switch {
	case pl.reason != "":
		s.Reason, s.Message = pl.reason, pl.message
	case pl.disabled:
		s.Ready, s.Reason, s.Message = true, v1alpha1.ReasonDisabled, "disabled: no new block is given to a node and no new address to a pod"
	case len(pl.without)+len(pl.full)+len(pl.spareless) > 0:
		// Where every node has addresses to give, the pool does its work: not an outage, but near.
		s.Ready = len(pl.without)+len(pl.full) == 0
		s.Reason, s.Message = v1alpha1.ReasonExhausted, pl.shortage()
	default:
		s.Ready, s.Reason, s.Message = true, v1alpha1.ReasonAccepted, "nodes get blocks of this pool"
	}
	return s
}

func (pl *pool) shortage() string {
	var parts []string
	for _, part := range []struct {
		what  string
		nodes []string
	}{
		{"nodes without a block", pl.without},
		{"nodes without a free address", pl.full},
		{"nodes without a spare block", pl.spareless},
	} {
		if len(part.nodes) > 0 {
			parts = append(parts, part.what+": "+enumerate(part.nodes))
		}
	}
	return "no block is free; " + strings.Join(parts, "; ")
}

func enumerate(names []string) string {
	if len(names) <= maxNamed {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:maxNamed], ", "), len(names)-maxNamed)
}
