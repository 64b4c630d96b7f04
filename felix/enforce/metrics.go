// SPDX-License-Identifier: Apache-2.0

package enforce

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/heliograph-dev/heliograph/policy"
)

const (
	// maxRuleSeries bounds what one node's rules can cost Prometheus; the busiest are told one by one.
	maxRuleSeries = 500
	// scrapeTimeout is how long a scrape waits for the loop.
	scrapeTimeout = 5 * time.Second
)

// metrics are counted where they happen.
type metrics struct {
	applySeconds, inForceSeconds prometheus.Histogram
	errors, cut                  prometheus.Counter
	logged                       *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	histogram := func(name, help string) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "heliograph_policy_" + name, Help: help, Buckets: prometheus.ExponentialBuckets(0.0005, 4, 9),
		})
	}
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "heliograph_policy_" + name, Help: help})
	}
	m := &metrics{
		applySeconds:   histogram("apply_duration_seconds", "Time from a change that the agent noticed until the kernel obeys it."),
		inForceSeconds: histogram("in_force_duration_seconds", "Time from a policy's new generation that the agent noticed until it is in force for the node's pods."),
		errors:         counter("apply_errors_total", "Failed attempts to put policy in force."),
		logged: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "heliograph_policy_logged_packets_total",
			Help: "Packets that rules logged, by what they did with them. The kernel logs at most 10 a second for each rule.",
		}, []string{"action"}),
		cut: counter("connections_cut_total", "Connections ended since a change of policy denies them."),
	}
	var errs []error
	for _, c := range []prometheus.Collector{m.applySeconds, m.inForceSeconds, m.errors, m.cut, m.logged} {
		errs = append(errs, reg.Register(c))
	}
	return m, errors.Join(errs...)
}

var (
	endpointsDesc = prometheus.NewDesc("heliograph_policy_endpoints", "Pods of the node, by whether policy lets them talk at all: closed ones are unknown to the API.", []string{"state"}, nil)
	policiesDesc  = prometheus.NewDesc("heliograph_policy_policies", "Policies that select pods of the node.", nil, nil)
	setsDesc      = prometheus.NewDesc("heliograph_policy_sets", "Sets of addresses that those policies refer to.", nil, nil)
	refusedDesc   = prometheus.NewDesc("heliograph_policy_refused", "Policies that the kernel does not take; their pods are closed, and hosts open if it is the failsafes.", nil, nil)
	packetsDesc   = prometheus.NewDesc("heliograph_policy_rule_packets_total", "Packets that a rule matched: first packets of connections. The busiest rules only.", ruleLabels, nil)
	bytesDesc     = prometheus.NewDesc("heliograph_policy_rule_bytes_total", "Bytes of those packets.", ruleLabels, nil)
	ruleLabels    = []string{"kind", "namespace", "policy", "direction", "rule"}
)

// collector reads the rest off when somebody scrapes.
type collector struct{ e *Enforcer }

// Describe implements prometheus.Collector.
func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{endpointsDesc, policiesDesc, setsDesc, refusedDesc, packetsDesc, bytesDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	s := c.e.Status()
	gauge := func(d *prometheus.Desc, v int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	gauge(endpointsDesc, s.Endpoints-s.Closed, "open")
	gauge(endpointsDesc, s.Closed, "closed")
	gauge(policiesDesc, s.Policies)
	gauge(setsDesc, s.Sets)
	if c.e.Ready() != nil {
		return // the loop does not listen yet
	}
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout) // a Collector is given none
	defer cancel()
	var counts map[policy.RuleID]policy.Count
	var refused int
	var err error
	asked := c.e.ask(ctx, func() {
		counts, err = c.e.use.Counters(ctx)
		refused = len(c.e.refused())
	})
	if err := errors.Join(asked, err); err != nil {
		ch <- prometheus.NewInvalidMetric(packetsDesc, err)
		return
	}
	gauge(refusedDesc, refused)
	for _, id := range busiest(counts, maxRuleSeries) {
		labels := []string{id.Policy.Kind.String(), id.Policy.Namespace, id.Policy.Name, id.Direction.String(), strconv.Itoa(id.Index)}
		ch <- prometheus.MustNewConstMetric(packetsDesc, prometheus.CounterValue, float64(counts[id].Packets), labels...)
		ch <- prometheus.MustNewConstMetric(bytesDesc, prometheus.CounterValue, float64(counts[id].Bytes), labels...)
	}
}

// busiest are the rules that saw the most packets.
func busiest(counts map[policy.RuleID]policy.Count, limit int) []policy.RuleID {
	ids := slices.Collect(maps.Keys(counts))
	if len(ids) <= limit {
		return ids
	}
	slices.SortFunc(ids, func(a, b policy.RuleID) int {
		return cmp.Or(cmp.Compare(counts[b].Packets, counts[a].Packets), a.Policy.Compare(b.Policy), compareRules(a, b))
	})
	return ids[:limit]
}
