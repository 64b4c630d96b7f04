// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
)

// Each case is a cluster, one object a line, and the plan for it, one item a line:
//
//	pool NAME CIDR [bits=N] [age=MINUTES] [disabled] [selector=…to the end of the line]
//	node NAME [LABEL=VALUE …]
//	block CIDR POOL NODE [primary] [releasing] [age=MINUTES]
//	status NODE [own=ADDRESS] [CIDR@POOL=INUSE …]
func TestCompute(t *testing.T) {
	for _, tt := range []struct{ name, in, want string }{
		{
			"nothing",
			"",
			"",
		},
		{
			"a node gets a primary of each family",
			`pool v4 10.244.0.0/16
			pool v6 fd00:244::/56
			node node1`,
			`create 10.244.0.0/26 v4 node1 primary
			create fd00:244::/122 v6 node1 primary
			pool v4 True Accepted 1/1024 0: nodes get blocks of this pool
			pool v6 True Accepted 1/9007199254740992 0: nodes get blocks of this pool`,
		},
		{
			"block size of the pool",
			`pool v4 10.244.0.0/24 bits=28
			node node1
			node node2`,
			`create 10.244.0.0/28 v4 node1 primary
			create 10.244.0.16/28 v4 node2 primary
			pool v4 True Accepted 2/16 0: nodes get blocks of this pool`,
		},
		{
			"nothing to do",
			`pool v4 10.244.0.0/16
			node node1
			block 10.244.0.0/26 v4 node1 primary
			status node1 10.244.0.0/26@v4=1`,
			`pool v4 True Accepted 1/1024 1: nodes get blocks of this pool`,
		},
		{
			"a spare once a pod uses the primary",
			`pool v4 10.244.0.0/16
			node node1
			block 10.244.0.0/26 v4 node1 primary
			status node1 10.244.0.0/26@v4=2`,
			`create 10.244.0.64/26 v4 node1
			pool v4 True Accepted 2/1024 2: nodes get blocks of this pool`,
		},
		{
			"a block that is not reported yet is the spare",
			`pool v4 10.244.0.0/16
			node node1
			block 10.244.0.0/26 v4 node1 primary
			block 10.244.0.64/26 v4 node1
			status node1 10.244.0.0/26@v4=64`,
			`pool v4 True Accepted 2/1024 64: nodes get blocks of this pool`,
		},
		{
			"another spare once a pod uses the first",
			`pool v4 10.244.0.0/16
			node node1
			block 10.244.0.0/26 v4 node1 primary
			block 10.244.0.64/26 v4 node1
			status node1 10.244.0.0/26@v4=64 10.244.0.64/26@v4=1`,
			`create 10.244.0.128/26 v4 node1
			pool v4 True Accepted 3/1024 65: nodes get blocks of this pool`,
		},
		{
			"an empty primary is spare enough",
			`pool v4 10.244.0.0/16
			node node1
			block 10.244.0.0/26 v4 node1 primary
			block 10.244.0.64/26 v4 node1
			status node1 10.244.0.0/26@v4=1 10.244.0.64/26@v4=1`,
			`pool v4 True Accepted 2/1024 2: nodes get blocks of this pool`,
		},
		{
			"a primary without room for a pod is no spare",
			`pool v4 10.244.0.0/24 bits=31
			node node1`,
			`create 10.244.0.0/31 v4 node1 primary
			create 10.244.0.2/31 v4 node1
			pool v4 True Accepted 2/128 0: nodes get blocks of this pool`,
		},
		{
			"more than two empty ones: the youngest goes",
			`pool v4 10.244.0.0/16
			node node1
			block 10.244.0.0/26 v4 node1 primary age=9
			block 10.244.0.64/26 v4 node1 age=1
			block 10.244.0.128/26 v4 node1 age=8
			block 10.244.0.192/26 v4 node1 age=7
			status node1 10.244.0.0/26@v4=1 10.244.0.64/26@v4=0 10.244.0.128/26@v4=0 10.244.0.192/26@v4=0`,
			`release 10-244-0-64-26
			pool v4 True Accepted 4/1024 1: nodes get blocks of this pool`,
		},
		{
			"only a block that was reported is released",
			`pool v4 10.244.0.0/16
			node node1
			block 10.244.0.0/26 v4 node1 primary age=9
			block 10.244.0.64/26 v4 node1 age=1
			block 10.244.0.128/26 v4 node1 age=8
			block 10.244.0.192/26 v4 node1 age=7
			status node1 10.244.0.0/26@v4=1 10.244.0.128/26@v4=0 10.244.0.192/26@v4=0`,
			`release 10-244-0-192-26
			pool v4 True Accepted 4/1024 1: nodes get blocks of this pool`,
		},
		{
			"releasing: still listed",
			`pool v4 10.244.0.0/16
			node node1
			block 10.244.0.0/26 v4 node1 primary
			block 10.244.0.64/26 v4 node1 releasing
			status node1 10.244.0.0/26@v4=1 10.244.0.64/26@v4=0`,
			`pool v4 True Accepted 2/1024 1: nodes get blocks of this pool`,
		},
		{
			"releasing: given back",
			`pool v4 10.244.0.0/16
			node node1
			block 10.244.0.0/26 v4 node1 primary
			block 10.244.0.64/26 v4 node1 releasing
			status node1 10.244.0.0/26@v4=1`,
			`delete 10-244-0-64-26 node1
			pool v4 True Accepted 1/1024 1: nodes get blocks of this pool`,
		},
		{
			"releasing: no word from the node is not a yes",
			`pool v4 10.244.0.0/16
			node node1
			block 10.244.0.0/26 v4 node1 primary
			block 10.244.0.64/26 v4 node1 releasing`,
			`pool v4 True Accepted 2/1024 0: nodes get blocks of this pool`,
		},
		{
			"a releasing block is no spare",
			`pool v4 10.244.0.0/16
			node node1
			block 10.244.0.0/26 v4 node1 primary
			block 10.244.0.64/26 v4 node1 releasing
			status node1 10.244.0.0/26@v4=2 10.244.0.64/26@v4=0`,
			`create 10.244.0.128/26 v4 node1
			pool v4 True Accepted 3/1024 2: nodes get blocks of this pool`,
		},
		{
			"a node is gone: its range is free once the block is, too",
			`pool v4 10.244.0.0/25
			node node2
			block 10.244.0.0/26 v4 node1 primary
			block 10.244.0.64/26 v4 node1
			status node1 10.244.0.0/26@v4=9`,
			`delete 10-244-0-0-26 node1 (gone)
			delete 10-244-0-64-26 node1 (gone)
			forget node1
			pool v4 False Exhausted 0/2 0: no block is free; nodes without a block: node2
			problem node2 IPPoolExhausted: no free IPv4 block in IPPool v4: the node has no block, and its pods get no address`,
		},
		{
			"the first free block is taken",
			`pool v4 10.244.0.0/16
			node node1
			node node2
			node node3
			block 10.244.0.0/26 v4 node1 primary
			block 10.244.0.128/26 v4 node2 primary`,
			`create 10.244.0.64/26 v4 node3 primary
			pool v4 True Accepted 3/1024 0: nodes get blocks of this pool`,
		},
		{
			"nodeSelector",
			`pool r1 10.1.0.0/16 selector=rack == 'r1'
			pool r2 10.2.0.0/16 selector=rack == 'r2'
			node node1 rack=r1
			node node2 rack=r2
			node node3`,
			`create 10.1.0.0/26 r1 node1 primary
			create 10.2.0.0/26 r2 node2 primary
			pool r1 True Accepted 1/1024 0: nodes get blocks of this pool
			pool r2 True Accepted 1/1024 0: nodes get blocks of this pool
			problem node3 NoIPPool: no IPPool that is ready and enabled selects this node: its pods get no address`,
		},
		{
			"several pools: the first by name that has a block",
			`pool b 10.2.0.0/16
			pool a 10.1.0.0/26
			node node1
			node node2`,
			`create 10.1.0.0/26 a node1 primary
			create 10.2.0.0/26 b node2 primary
			pool a True Accepted 1/1 0: nodes get blocks of this pool
			pool b True Accepted 1/1024 0: nodes get blocks of this pool`,
		},
		{
			"overlap: the older goes on",
			`pool new 10.244.0.0/16 age=1
			pool old 10.244.128.0/17 age=2
			pool other 10.0.0.0/16 age=1
			node node1
			block 10.244.128.0/26 old node1 primary
			status node1 10.244.128.0/26@old=2`,
			`create 10.244.128.64/26 old node1
			pool new False Overlap 0/1024 0: overlaps the older pool old (10.244.128.0/17): no block of it is given to a node
			pool old True Accepted 2/512 2: nodes get blocks of this pool
			pool other True Accepted 0/1024 0: nodes get blocks of this pool`,
		},
		{
			"overlap: the newer is within the older",
			`pool new 10.244.128.0/17 age=1
			pool old 10.244.0.0/16 age=2
			node node1`,
			`create 10.244.0.0/26 old node1 primary
			pool new False Overlap 0/512 0: overlaps the older pool old (10.244.0.0/16): no block of it is given to a node
			pool old True Accepted 1/1024 0: nodes get blocks of this pool`,
		},
		{
			"overlap: of the same second, the one that nodes hold blocks of",
			`pool a 10.244.0.0/16 age=1
			pool b 10.244.0.0/16 age=1
			node node1
			block 10.244.0.0/26 b node1 primary`,
			`pool a False Overlap 0/1024 0: overlaps the older pool b (10.244.0.0/16): no block of it is given to a node
			pool b True Accepted 1/1024 0: nodes get blocks of this pool`,
		},
		{
			"overlap: of the same second, the first by name",
			`pool b 10.244.0.0/16 age=1
			pool a 10.244.0.0/24 age=1`,
			`pool a True Accepted 0/4 0: nodes get blocks of this pool
			pool b False Overlap 0/1024 0: overlaps the older pool a (10.244.0.0/24): no block of it is given to a node`,
		},
		{
			"a selector that does not parse: no new blocks, and the old ones stay",
			`pool v4 10.244.0.0/16 selector=rack = 'r1'
			node node1
			node node2
			block 10.244.0.0/26 v4 node1 primary
			block 10.244.0.64/26 v4 node1
			status node1 10.244.0.0/26@v4=9 10.244.0.64/26@v4=0`,
			`pool v4 False Invalid 2/1024 9: nodeSelector: position 6: expected ==, !=, in, not in, contains, starts with or ends with, found "="
			problem node2 NoIPPool: no IPPool that is ready and enabled selects this node: its pods get no address`,
		},
		{
			"a block size that the API server would have refused",
			`pool big 10.0.0.0/24 bits=20
			pool one 10.1.0.0/24 bits=32
			pool host 10.2.0.1/24`,
			`pool big False Invalid 0/0 0: blockSize 20 is impossible in 10.0.0.0/24: at least 24, at most 31, since the first address of a block is never given out
			pool host False Invalid 0/0 0: cidr "10.2.0.1/24" is not a network in CIDR notation without host bits
			pool one False Invalid 0/256 0: blockSize 32 is impossible in 10.1.0.0/24: at least 24, at most 31, since the first address of a block is never given out`,
		},
		{
			"disabled: no new blocks, empty ones come back, the rest stays",
			`pool v4 10.244.0.0/16 disabled
			node node1
			node node2
			block 10.244.0.0/26 v4 node1 primary
			block 10.244.0.64/26 v4 node1
			block 10.244.0.128/26 v4 node1
			status node1 10.244.0.0/26@v4=1 10.244.0.64/26@v4=0 10.244.0.128/26@v4=1`,
			`release 10-244-0-64-26
			pool v4 True Disabled 3/1024 2: disabled: no new block is given to a node and no new address to a pod
			problem node2 NoIPPool: no IPPool that is ready and enabled selects this node: its pods get no address`,
		},
		{
			"disabled: the spare comes from another pool, the primary stays",
			`pool a 10.1.0.0/16 disabled
			pool b 10.2.0.0/16
			node node1
			block 10.1.0.0/26 a node1 primary
			status node1 10.1.0.0/26@a=1`,
			`create 10.2.0.0/26 b node1
			pool a True Disabled 1/1024 1: disabled: no new block is given to a node and no new address to a pod
			pool b True Accepted 1/1024 0: nodes get blocks of this pool`,
		},
		{
			"too small: who has blocks keeps them",
			`pool v4 10.244.0.0/25
			node node1
			node node2
			node node3
			block 10.244.0.0/26 v4 node1 primary
			block 10.244.0.64/26 v4 node2 primary
			status node1 10.244.0.0/26@v4=1
			status node2 10.244.0.64/26@v4=1`,
			`pool v4 False Exhausted 2/2 2: no block is free; nodes without a block: node3
			problem node3 IPPoolExhausted: no free IPv4 block in IPPool v4: the node has no block, and its pods get no address`,
		},
		{
			"too small: many nodes",
			`pool v4 10.244.0.0/26
			node n1
			node n2
			node n3
			node n4
			node n5
			node n6
			node n7
			node n8
			block 10.244.0.0/26 v4 n1 primary
			block fd00::/122 gone n2
			status n1 10.244.0.0/26@v4=1`,
			`pool v4 False Exhausted 1/1 1: no block is free; nodes without a block: n2, n3, n4, n5, n6 and 2 more
			problem n2 IPPoolExhausted: no free IPv4 block in IPPool v4: the node has no block, and its pods get no address
			problem n3 IPPoolExhausted: no free IPv4 block in IPPool v4: the node has no block, and its pods get no address
			problem n4 IPPoolExhausted: no free IPv4 block in IPPool v4: the node has no block, and its pods get no address
			problem n5 IPPoolExhausted: no free IPv4 block in IPPool v4: the node has no block, and its pods get no address
			problem n6 IPPoolExhausted: no free IPv4 block in IPPool v4: the node has no block, and its pods get no address
			problem n7 IPPoolExhausted: no free IPv4 block in IPPool v4: the node has no block, and its pods get no address
			problem n8 IPPoolExhausted: no free IPv4 block in IPPool v4: the node has no block, and its pods get no address`,
		},
		{
			"no spare: a warning, as long as addresses are left",
			`pool v4 10.244.0.0/26
			node node1
			block 10.244.0.0/26 v4 node1 primary
			status node1 10.244.0.0/26@v4=62`,
			`pool v4 True Exhausted 1/1 62: no block is free; nodes without a spare block: node1`,
		},
		{
			"no spare and no address",
			`pool v4 10.244.0.0/26
			node node1
			block 10.244.0.0/26 v4 node1 primary
			status node1 10.244.0.0/26@v4=63`,
			`pool v4 False Exhausted 1/1 63: no block is free; nodes without a free address: node1
			problem node1 IPPoolExhausted: no free IPv4 block in IPPool v4: its blocks are full, and new pods get no address`,
		},
		{
			"primaries come before spares",
			`pool v4 10.244.0.0/25
			node node1
			node node2
			block 10.244.0.0/26 v4 node1 primary
			status node1 10.244.0.0/26@v4=2`,
			`create 10.244.0.64/26 v4 node2 primary
			pool v4 True Exhausted 2/2 2: no block is free; nodes without a spare block: node1`,
		},
		{
			"deleted pool: its blocks stay while nothing replaces them",
			`node node1
			block 10.244.0.0/26 gone node1 primary
			block 10.244.0.64/26 gone node1
			status node1 10.244.0.0/26@gone=1 10.244.0.64/26@gone=0`,
			"",
		},
		{
			"deleted pool: another one takes over",
			`pool new 10.1.0.0/16
			node node1
			block 10.244.0.0/26 gone node1 primary
			block 10.244.0.64/26 gone node1
			status node1 10.244.0.0/26@gone=1 10.244.0.64/26@gone=5`,
			`create 10.1.0.0/26 new node1 primary
			release 10-244-0-0-26
			release 10-244-0-64-26
			pool new True Accepted 1/1024 0: nodes get blocks of this pool`,
		},
		{
			"deleted pool: a new one over its range goes around its blocks",
			`pool new 10.244.0.0/16 bits=24
			node node1
			block 10.244.0.64/26 gone node1 primary
			status node1 10.244.0.64/26@gone=7`,
			`create 10.244.1.0/24 new node1 primary
			release 10-244-0-64-26
			pool new True Accepted 1/256 0: nodes get blocks of this pool`,
		},
		{
			"deleted pool: one of the same name and sizes adopts its blocks",
			`pool v4 10.244.0.0/16
			node node1
			block 10.244.9.0/26 v4 node1 primary
			status node1 10.244.9.0/26@v4=1`,
			`pool v4 True Accepted 1/1024 1: nodes get blocks of this pool`,
		},
		{
			"deleted pool: the successor of the same name is elsewhere",
			`pool v4 10.9.0.0/16
			node node1
			block 10.244.9.0/26 v4 node1 primary
			status node1 10.244.9.0/26@v4=1`,
			`create 10.9.0.0/26 v4 node1 primary
			release 10-244-9-0-26
			pool v4 True Accepted 1/1024 0: nodes get blocks of this pool`,
		},
		{
			"deleted pool: the successor is full",
			`pool new 10.1.0.0/26
			node node1
			node node2
			block 10.1.0.0/26 new node2 primary
			block 10.244.0.0/26 gone node1 primary
			status node1 10.244.0.0/26@gone=1`,
			`pool new False Exhausted 1/1 0: no block is free; nodes without a block: node1
			problem node1 IPPoolExhausted: no free IPv4 block in IPPool new: the node keeps blocks of a pool that is gone or does not select it`,
		},
		{
			"the node moves to another rack",
			`pool r1 10.1.0.0/16 selector=rack == 'r1'
			pool r2 10.2.0.0/16 selector=rack == 'r2'
			node node1 rack=r2
			block 10.1.0.0/26 r1 node1 primary
			status node1 10.1.0.0/26@r1=3`,
			`create 10.2.0.0/26 r2 node1 primary
			release 10-1-0-0-26
			pool r1 True Accepted 1/1024 3: nodes get blocks of this pool
			pool r2 True Accepted 1/1024 0: nodes get blocks of this pool`,
		},
		{
			"a second primary, made by hand, is released",
			`pool v4 10.244.0.0/16
			node node1
			block 10.244.0.0/26 v4 node1 primary age=2
			block 10.244.0.64/26 v4 node1 primary age=1
			status node1 10.244.0.0/26@v4=1 10.244.0.64/26@v4=1`,
			`release 10-244-0-64-26
			pool v4 True Accepted 2/1024 2: nodes get blocks of this pool`,
		},
		{
			"somebody deleted blocks in use: they are made again",
			`pool v4 10.244.0.0/16
			node node1
			node node2
			status node1 own=10.244.0.1 10.244.0.0/26@v4=5 10.244.0.64/26@v4=3 10.244.0.128/26@v4=0`,
			`create 10.244.0.0/26 v4 node1 primary
			create 10.244.0.64/26 v4 node1
			create 10.244.0.128/26 v4 node2 primary
			create 10.244.0.192/26 v4 node1
			pool v4 True Accepted 4/1024 8: nodes get blocks of this pool`,
		},
		{
			"somebody deleted a block in use, and another node has it",
			`pool v4 10.244.0.0/16
			node node1
			node node2
			block 10.244.0.0/26 v4 node2 primary
			status node1 10.244.0.0/26@v4=5`,
			`create 10.244.0.64/26 v4 node1 primary
			pool v4 True Accepted 2/1024 0: nodes get blocks of this pool
			problem node1 IPBlockLost: uses 5 addresses of block 10.244.0.0/26, which node node2 holds now (IPBlock 10-244-0-0-26)`,
		},
		{
			"a node cannot claim what no pool has",
			`pool v4 10.244.0.0/16
			node node1
			block 10.244.0.0/26 v4 node1 primary
			status node1 10.244.0.0/26@v4=1 10.0.0.0/8@v4=5 10.9.0.0/26@gone=1 10.9.0.64/26@v4=1`,
			`pool v4 True Accepted 1/1024 1: nodes get blocks of this pool
			problem node1 IPBlockLost: uses 1 addresses of block 10.9.0.0/26, which no IPPool gone has
			problem node1 IPBlockLost: uses 1 addresses of block 10.9.0.64/26, which no IPPool v4 has
			problem node1 IPBlockLost: uses 5 addresses of block 10.0.0.0/8, which node node1 holds now (IPBlock 10-244-0-0-26)`,
		},
		{
			"blocks made by hand over others are reported, and avoided",
			`pool v4 10.244.0.0/24
			node node1
			node node2
			block 10.244.0.0/26 v4 node1 primary
			block 10.244.0.0/25 hand node2`,
			`create 10.244.0.128/26 v4 node2 primary
			pool v4 True Accepted 2/4 0: nodes get blocks of this pool
			problem node1 IPBlockOverlap: IPBlock 10-244-0-0-26 overlaps IPBlock 10-244-0-0-25 of node node2
			problem node2 IPBlockOverlap: IPBlock 10-244-0-0-25 overlaps IPBlock 10-244-0-0-26 of node node1`,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := parseInput(t, tt.in)
			got := Compute(in)
			if diff := cmp.Diff(lines(tt.want), format(got)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func lines(text string) []string {
	var out []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" {
			out = append(out, line)
		}
	}
	return out
}

func format(p Plan) []string {
	var out []string
	add := func(f string, args ...any) { out = append(out, strings.TrimSpace(fmt.Sprintf(f, args...))) }
	for _, b := range p.Create {
		add("create %s %s %s %s", b.CIDR, b.Pool, b.Node, map[bool]string{true: "primary"}[b.Primary])
	}
	for _, name := range p.Release {
		add("release %s", name)
	}
	for _, d := range p.Delete {
		add("delete %s %s %s", d.Name, d.Node, map[bool]string{true: "(gone)"}[d.NodeGone])
	}
	for _, name := range p.Forget {
		add("forget %s", name)
	}
	for _, s := range p.Pools {
		add("pool %s %s %s %d/%d %d: %s", s.Name, map[bool]string{true: "True", false: "False"}[s.Ready], s.Reason, s.Blocks, s.Capacity, s.InUse, s.Message)
	}
	for _, problem := range p.Problems {
		add("problem %s %s: %s", problem.Node, problem.Reason, problem.Message)
	}
	return out
}

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func parseInput(t *testing.T, text string) Input {
	t.Helper()
	var in Input
	for _, line := range lines(text) {
		line, selector, _ := strings.Cut(line, " selector=")
		words := strings.Fields(line)
		switch words[0] {
		case "pool":
			in.Pools = append(in.Pools, parsePoolLine(t, words[1:], selector))
		case "block":
			in.Blocks = append(in.Blocks, parseBlockLine(t, words[1:]))
		case "node":
			n := Node{Name: words[1], Labels: map[string]string{}}
			for _, w := range words[2:] {
				k, v, _ := strings.Cut(w, "=")
				n.Labels[k] = v
			}
			in.Nodes = append(in.Nodes, n)
		case "status":
			in.Statuses = append(in.Statuses, parseStatusLine(t, words[1:]))
		default:
			t.Fatalf("bad line %q", line)
		}
	}
	return in
}

func parsePoolLine(t *testing.T, words []string, selector string) v1alpha1.IPPool {
	t.Helper()
	p := v1alpha1.IPPool{ObjectMeta: metav1.ObjectMeta{Name: words[0]}, Spec: v1alpha1.IPPoolSpec{CIDR: words[1], NodeSelector: selector}}
	for _, w := range words[2:] {
		k, v, _ := strings.Cut(w, "=")
		switch k {
		case "bits":
			bits := int32(number(t, v))
			p.Spec.BlockSize = &bits
		case "age":
			p.CreationTimestamp = minutesAgo(number(t, v))
		case "disabled":
			p.Spec.Disabled = true
		default:
			t.Fatalf("bad word %q", w)
		}
	}
	return p
}

func parseBlockLine(t *testing.T, words []string) v1alpha1.IPBlock {
	t.Helper()
	b := v1alpha1.IPBlock{
		ObjectMeta: metav1.ObjectMeta{Name: BlockName(netip.MustParsePrefix(words[0]))},
		Spec:       v1alpha1.IPBlockSpec{CIDR: words[0], Pool: words[1], Node: words[2]},
	}
	for _, w := range words[3:] {
		k, v, _ := strings.Cut(w, "=")
		switch k {
		case "primary":
			b.Spec.Primary = true
		case "releasing":
			b.Spec.Releasing = true
		case "age":
			b.CreationTimestamp = minutesAgo(number(t, v))
		default:
			t.Fatalf("bad word %q", w)
		}
	}
	return b
}

func parseStatusLine(t *testing.T, words []string) v1alpha1.NodeStatus {
	t.Helper()
	s := v1alpha1.NodeStatus{ObjectMeta: metav1.ObjectMeta{Name: words[0]}}
	for _, w := range words[1:] {
		k, v, _ := strings.Cut(w, "=")
		if k == "own" {
			s.Status.PodNetworkIPs = append(s.Status.PodNetworkIPs, v)
			continue
		}
		cidr, pool, _ := strings.Cut(k, "@")
		s.Status.Blocks = append(s.Status.Blocks, v1alpha1.BlockStatus{
			Name: BlockName(netip.MustParsePrefix(cidr)), CIDR: cidr, Pool: pool, InUse: int64(number(t, v)),
		})
	}
	return s
}

func number(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func minutesAgo(n int) metav1.Time { return metav1.NewTime(epoch.Add(-time.Duration(n) * time.Minute)) }
