// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/controllers/plan"
)

// controllerMetrics are set at each plan.
type controllerMetrics struct {
	blocks, capacity, inUse *prometheus.GaugeVec
	problems                *prometheus.GaugeVec
	writes                  *prometheus.CounterVec
	reflectors              *prometheus.GaugeVec
	mesh                    prometheus.Gauge
}

func newMetrics(r prometheus.Registerer, version string) *controllerMetrics {
	perPool := func(name, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, []string{"pool"})
	}
	m := &controllerMetrics{
		blocks:   perPool("heliograph_ippool_blocks", "Blocks of the pool that nodes hold."),
		capacity: perPool("heliograph_ippool_block_capacity", "Blocks that the pool can give out, at most 2^53."),
		inUse:    perPool("heliograph_ippool_addresses_in_use", "Addresses of the pool that pods and nodes hold, as nodes report."),
		problems: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "heliograph_node_block_problems", Help: "Nodes with a problem about their blocks, by reason (see Events of the Node).",
		}, []string{"reason"}),
		writes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "heliograph_ipblock_writes_total", Help: "Writes of IPBlocks, by operation: create, release, delete.",
		}, []string{"operation"}),
	}
	m.reflectors = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "heliograph_reflectors", Help: "Route reflectors, by state: Joining, Active, Leaving.",
	}, []string{"state"})
	m.mesh = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "heliograph_bgp_mesh", Help: "1 while every node peers with every other node.",
	})
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "heliograph_build_info", Help: "1, with the version of the program.", ConstLabels: prometheus.Labels{"version": version},
	})
	build.Set(1)
	r.MustRegister(m.blocks, m.capacity, m.inUse, m.problems, m.writes, m.reflectors, m.mesh, build)
	return m
}

func (m *controllerMetrics) observe(p plan.Plan) {
	for _, v := range []*prometheus.GaugeVec{m.blocks, m.capacity, m.inUse, m.problems} {
		v.Reset() // pools come and go
	}
	for _, pool := range p.Pools {
		m.blocks.WithLabelValues(pool.Name).Set(float64(pool.Blocks))
		m.capacity.WithLabelValues(pool.Name).Set(float64(pool.Capacity))
		m.inUse.WithLabelValues(pool.Name).Set(float64(pool.InUse))
	}
	for _, problem := range p.Problems {
		m.problems.WithLabelValues(problem.Reason).Inc()
	}
}

func (m *controllerMetrics) observeReflectors(s v1alpha1.RouteReflectionStatus) {
	for _, state := range []v1alpha1.ReflectorState{v1alpha1.ReflectorJoining, v1alpha1.ReflectorActive, v1alpha1.ReflectorLeaving} {
		n := 0
		for _, r := range s.Reflectors {
			if r.State == state {
				n++
			}
		}
		m.reflectors.WithLabelValues(string(state)).Set(float64(n))
	}
	m.mesh.Set(0)
	if s.Mesh {
		m.mesh.Set(1)
	}
}
