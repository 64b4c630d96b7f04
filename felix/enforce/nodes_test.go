// SPDX-License-Identifier: Apache-2.0

package enforce

import (
	"strings"
	"testing"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
)

func block(cidr, node string, primary bool) *v1alpha1.IPBlock {
	return &v1alpha1.IPBlock{Spec: v1alpha1.IPBlockSpec{CIDR: cidr, Node: node, Primary: primary}}
}

// TestNodesHavePodAddresses: what a node sends to pods of others comes from its own address in the pod network.
func TestNodesHavePodAddresses(t *testing.T) {
	n := newNodes()
	addresses := func() string {
		var out []string
		for _, a := range n.sends("a") {
			out = append(out, a.String())
		}
		return strings.Join(out, " ")
	}
	for _, step := range []struct {
		name    string
		block   *v1alpha1.IPBlock
		changed string
		want    string
	}{
		{"four", block("10.244.0.0/26", "a", true), "a", "10.244.0.1"},
		{"six", block("fd00:244::/122", "a", true), "a", "10.244.0.1 fd00:244::1"},
		{"more", block("10.244.1.0/26", "a", false), "", "10.244.0.1 fd00:244::1"},
		{"four", block("10.244.0.0/26", "b", true), "a b", "fd00:244::1"},
		{"six", nil, "a", ""},
		{"broken", block("nonsense", "a", true), "", ""},
	} {
		if changed := strings.Join(n.setBlock(step.name, step.block), " "); changed != step.changed {
			t.Errorf("block %s: nodes %q changed, want %q", step.name, changed, step.changed)
		}
		if got := addresses(); got != step.want {
			t.Errorf("block %s: node a has %q, want %q", step.name, got, step.want)
		}
	}
}
