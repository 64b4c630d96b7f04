// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"encoding/json"
	"flag"
	"testing"
	"time"

	"github.com/heliograph-dev/heliograph/policy"
)

const (
	packetsPerWorld = 250
	worlds          = 480 // 120,000 packets
)

var firstSeed = flag.Uint64("seed", 0, "first seed; 0: from the clock")

// TestOracle compares the verdicts on random packets between random pods under random policies.
func TestOracle(t *testing.T) {
	first := *firstSeed
	if first == 0 {
		first = uint64(time.Now().UnixNano()) >> 10
	}
	oracle := newTheirs()
	var cases, denied, itself int
	for seed := first; seed < first+worlds; seed++ {
		w := newWorld(seed)
		oracle.load(t, w, false)
		us := w.ours(t)
		for range packetsPerWorld {
			p := w.packet()
			got := us.allows(p)
			if p.Src == p.Dst && !w.external(p.Src.String()) {
				// The oracle knows no such exception; TestOracleIsWrong.
				if itself++; !got {
					t.Fatalf("seed %d: %+v: a pod may not talk to itself", seed, p)
				}
				continue
			}
			want := oracle.allows(t, p)
			if cases++; !want {
				denied++
			}
			if got != want {
				t.Errorf("seed %d: %+v: we allow it: %v, the oracle: %v\npolicies: %s\n%s", seed, p, got, want, dump(w.policies), dump(w.clusters))
				if t.Failed() && cases > 1000 {
					t.FailNow()
				}
			}
		}
	}
	t.Logf("seeds %d to %d: %d cases, of which %d are denied, and %d of pods with themselves", first, first+worlds-1, cases, denied, itself)
	if cases < 100_000 || denied < cases/10 || denied > cases*9/10 {
		t.Errorf("%d cases, of which %d are denied, say too little", cases, denied)
	}
}

// external says whether no pod has the address for itself.
func (w *world) external(ip string) bool {
	for _, p := range w.pods {
		for _, i := range p.Status.PodIPs {
			if i.IP == ip {
				return p.Spec.HostNetwork
			}
		}
	}
	return true
}

func dump(v any) string {
	text, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return err.Error()
	}
	return string(text)
}

func verdict(allowed bool) policy.Action {
	if allowed {
		return policy.Allow
	}
	return policy.Deny
}
