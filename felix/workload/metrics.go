// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/heliograph-dev/heliograph/cni/ipam"
)

var addressesDesc = prometheus.NewDesc("heliograph_ipam_addresses",
	"Addresses of this node's blocks that pods can have, by what they do.", []string{"pool", "block", "state"}, nil)

// UsageCollector reports heliograph_ipam_addresses, counted when somebody scrapes.
type UsageCollector struct {
	// Usage counts: store.Store's.
	Usage func() []ipam.BlockUsage
}

// Describe implements prometheus.Collector.
func (c UsageCollector) Describe(ch chan<- *prometheus.Desc) { ch <- addressesDesc }

// Collect implements prometheus.Collector.
func (c UsageCollector) Collect(ch chan<- prometheus.Metric) {
	for _, u := range c.Usage() {
		block := u.Name
		if block == "" {
			block = u.CIDR.String()
		}
		free := u.Capacity - u.InUse - u.CoolingDown
		if u.Orphan {
			free = 0
		}
		for state, n := range map[string]int{"in_use": u.InUse, "cooling": u.CoolingDown, "free": free} {
			ch <- prometheus.MustNewConstMetric(addressesDesc, prometheus.GaugeValue, float64(n), u.Pool, block, state)
		}
	}
}
