// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"math"
	"time"

	"github.com/heliograph-dev/heliograph/felix/path"
)

// How often, in a cluster of a few nodes. Times grow with the logarithm of the number of nodes, so that the
// number of questions that a node gets grows slowly with the cluster.
const (
	activeInterval  = time.Second
	standbyInterval = 10 * time.Second
	budget          = 12 // steady questions per second
)

// plan is how often lanes ask.
type plan struct {
	// factor is by how much all times are longer than in a small cluster.
	factor float64
}

func interval(n path.Need) time.Duration {
	if n == path.Active {
		return activeInterval
	}
	return standbyInterval
}

// makePlan gives each lane its period and how many of its members are asked in one. If the budget allows
// that every member is asked in every period, so it is; if not, lanes share it, each asking some of its
// members; and if even one member per lane is too much, periods are stretched.
func makePlan(nodes int, lanes []*lane) plan {
	factor := max(1, math.Log(float64(nodes)))
	var all, one float64 // questions per second: all members, one of each lane
	for _, l := range lanes {
		rate := 1 / (interval(l.need).Seconds() * factor)
		one += rate
		all += rate * float64(len(l.members))
	}
	share := math.Inf(1) // members per period
	if all > budget {
		share = budget / one
	}
	if share < 1 {
		factor /= share
	}
	for _, l := range lanes {
		l.period = scale(interval(l.need), factor)
		l.sample = len(l.members)
		if share < float64(l.sample) {
			l.sample = max(1, int(share))
		}
	}
	return plan{factor: factor}
}

// times is a duration of a small cluster in this one.
func (p plan) times(d time.Duration) time.Duration { return scale(d, p.factor) }

func scale(d time.Duration, by float64) time.Duration { return time.Duration(float64(d) * by) }
