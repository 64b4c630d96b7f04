// SPDX-License-Identifier: Apache-2.0

package felix

import (
	"strconv"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/felix/path"
)

// metrics are the agent's own, and those read off the last report when somebody scrapes.
type metrics struct {
	report *atomic.Pointer[Report]

	applySeconds *prometheus.HistogramVec
	applyErrors  *prometheus.CounterVec
	pending      *prometheus.GaugeVec
	runSeconds   prometheus.Histogram
	pathChanges  *prometheus.CounterVec

	sessionUp, sessionSince, prefixesIn, prefixesOut, prefixesRejected, sessionFlaps *prometheus.Desc
	path, paths, routes, inSync, apiReachable, generation                            *prometheus.Desc
	unanswered, blocked, others, answering                                           *prometheus.Desc
	reachable, policyInForce                                                         func() bool
}

func newMetrics(reg prometheus.Registerer, version string, report *atomic.Pointer[Report], reachable, policyInForce func() bool) (*metrics, error) {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("heliograph_"+name, help, labels, nil)
	}
	session := []string{"peer", "address", "asn"}
	m := &metrics{
		report: report, reachable: reachable, policyInForce: policyInForce,
		applySeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "heliograph_driver_apply_duration_seconds", Help: "Time to bring one kernel subsystem up to date.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 4, 9),
		}, []string{"driver"}),
		applyErrors: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "heliograph_driver_apply_errors_total", Help: "Failed attempts to bring one kernel subsystem up to date.",
		}, []string{"driver"}),
		pending: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "heliograph_driver_pending_objects", Help: "Kernel objects that are not as they should be.",
		}, []string{"driver"}),
		runSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "heliograph_loop_duration_seconds", Help: "Time of one run of the agent's loop, from facts to kernel.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 4, 9),
		}),
		pathChanges: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "heliograph_path_changes_total", Help: "Changes of the method by which remote nodes are reached, by new method.",
		}, []string{"family", "method"}),
		sessionUp:        desc("bgp_session_up", "1 while the BGP session is established.", append(session, "state")...),
		sessionSince:     desc("bgp_session_since_seconds", "Unix time at which the session last came up or went down.", session...),
		prefixesIn:       desc("bgp_prefixes_in", "Routes accepted from the peer.", session...),
		prefixesOut:      desc("bgp_prefixes_out", "Routes sent to the peer.", session...),
		prefixesRejected: desc("bgp_prefixes_rejected", "Routes of the peer that are refused: by the import filter, or since the peer does not own them.", session...),
		sessionFlaps:     desc("bgp_session_flaps_total", "How often the session went down.", session...),
		path:             desc("path_info", "1, with the method by which the node is reached, for pods' addresses of each family.", "node", "ipv4", "ipv6"),
		paths:            desc("paths", "Remote nodes by family and the method by which they are reached.", "family", "method"),
		unanswered:       desc("paths_unanswered", "Paths to nodes that answer by no method at all, by family.", "family"),
		blocked:          desc("paths_blocked", "Paths that go by a worse method than the pool allows, by what keeps them from the best one.", "family", "reason"),
		others:           desc("quorum_nodes", "Other nodes that are Ready and should answer probes."),
		answering:        desc("quorum_nodes_answering", "Those of them that answer."),
		routes:           desc("routes", "Routes that the agent wants in the kernel.", "family", "method"),
		inSync:           desc("in_sync", "1 while the kernel is as it should be."),
		apiReachable:     desc("apiserver_reachable", "1 while the API server answers."),
		generation:       desc("loop_runs_total", "Runs of the agent's loop."),
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "heliograph_build_info", Help: "1, with the version of the program.", ConstLabels: prometheus.Labels{"version": version},
	})
	build.Set(1)
	for _, c := range []prometheus.Collector{m, build, m.applySeconds, m.applyErrors, m.pending, m.runSeconds, m.pathChanges} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		m.sessionUp, m.sessionSince, m.prefixesIn, m.prefixesOut, m.prefixesRejected, m.sessionFlaps,
		m.path, m.paths, m.routes, m.inSync, m.apiReachable, m.generation, m.unanswered, m.blocked, m.others, m.answering,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	gauge(m.apiReachable, boolean(m.reachable()))
	r := m.report.Load()
	if r == nil {
		gauge(m.inSync, 0)
		return
	}
	gauge(m.inSync, boolean(r.InSync && m.policyInForce()))
	ch <- prometheus.MustNewConstMetric(m.generation, prometheus.CounterValue, float64(r.Generation))
	for _, s := range r.BGP.Sessions {
		m.collectSession(ch, gauge, r, s)
	}
	m.collectPaths(gauge, r.Paths)
	m.collectTroubles(gauge, r.Paths)
	gauge(m.others, float64(r.Quorum.Others))
	gauge(m.answering, float64(r.Quorum.Answering))
	for class, n := range r.Routes {
		gauge(m.routes, float64(n), class.Family.String(), class.Method)
	}
}

// collectPaths makes one series per remote node, since there may be thousands.
func (m *metrics) collectPaths(gauge func(*prometheus.Desc, float64, ...string), paths []PathReport) {
	type methods struct{ ipv4, ipv6 string }
	byNode := map[string]methods{}
	counts := map[[2]string]int{}
	for _, p := range paths {
		n := byNode[p.Node]
		if p.Family == bgp.IPv6 {
			n.ipv6 = string(p.Method)
		} else {
			n.ipv4 = string(p.Method)
		}
		byNode[p.Node] = n
		counts[[2]string{p.Family.String(), string(p.Method)}]++
	}
	for node, n := range byNode {
		gauge(m.path, 1, node, n.ipv4, n.ipv6)
	}
	for k, n := range counts {
		gauge(m.paths, float64(n), k[0], k[1])
	}
}

// collectTroubles counts what keeps paths from being as good as they could be. Counts of zero are told
// too: an alert needs a series that is there.
func (m *metrics) collectTroubles(gauge func(*prometheus.Desc, float64, ...string), paths []PathReport) {
	for _, f := range []bgp.Family{bgp.IPv4, bgp.IPv6} {
		silent := 0
		blocked := map[path.Block]int{path.Unavailable: 0, path.ProbesLost: 0, path.StillProving: 0}
		for _, p := range paths {
			if p.Family != f {
				continue
			}
			if p.unanswered() {
				silent++
			}
			if b := p.blocked(); b != path.NotBlocked {
				blocked[b]++
			}
		}
		gauge(m.unanswered, float64(silent), f.String())
		for b, n := range blocked {
			gauge(m.blocked, float64(n), f.String(), b.String())
		}
	}
}

func (m *metrics) collectSession(ch chan<- prometheus.Metric, gauge func(*prometheus.Desc, float64, ...string), r *Report, s bgp.Session) {
	asn := strconv.FormatUint(uint64(s.ASN), 10)
	labels := []string{s.Peer, s.Address.String(), asn}
	gauge(m.sessionUp, boolean(s.State == bgp.StateEstablished), append(labels, string(s.State))...)
	gauge(m.sessionSince, seconds(s.Since), labels...)
	gauge(m.prefixesIn, float64(s.PrefixesIn), labels...)
	gauge(m.prefixesOut, float64(s.PrefixesOut), labels...)
	gauge(m.prefixesRejected, float64(s.Rejected+r.Refused[s.Neighbour()].Routes), labels...)
	ch <- prometheus.MustNewConstMetric(m.sessionFlaps, prometheus.CounterValue, float64(s.Flaps), labels...)
}

// observeChanges counts paths that changed their method.
func (m *metrics) observeChanges(changed []PathReport) {
	for _, p := range changed {
		m.pathChanges.WithLabelValues(p.Family.String(), string(p.Method)).Inc()
	}
}

// observeApply notes one driver's run.
func (m *metrics) observeApply(driver string, took time.Duration, err error, pending int) {
	m.applySeconds.WithLabelValues(driver).Observe(took.Seconds())
	m.pending.WithLabelValues(driver).Set(float64(pending))
	if err != nil {
		m.applyErrors.WithLabelValues(driver).Inc()
	}
}

func boolean(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func seconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1000
}
