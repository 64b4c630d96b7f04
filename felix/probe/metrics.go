// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/heliograph-dev/heliograph/felix/path"
)

// metrics has one series per method or reason, never per node: each node has thousands of others.
type metrics struct {
	sent, answered, lost [path.Methods]prometheus.Counter
	rtt                  [path.Methods]prometheus.Observer
	rejected             *prometheus.CounterVec
}

// Why a packet was rejected, beside what parse finds.
const (
	rejectSource = "source"
	rejectMAC    = "mac"
	rejectDevice = "device"
	rejectNonce  = "nonce" // an answer that nobody waits for: late, twice, or never asked for
	rejectRate   = "rate"
)

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	counter := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "heliograph_probe_" + name, Help: help}, []string{label})
	}
	sent := counter("sent_total", "Questions sent to other nodes, by the way they went.", "method")
	answered := counter("answered_total", "Questions that were answered, by the way they went.", "method")
	lost := counter("lost_total", "Questions that were not answered in time or could not be sent, by the way they went.", "method")
	rtt := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "heliograph_probe_rtt_seconds", Help: "Time from a question to its answer.",
		Buckets: prometheus.ExponentialBuckets(0.00005, 3, 10),
	}, []string{"method"})
	m := &metrics{rejected: counter("rejected_total", "Packets that were refused, by reason.", "reason")}
	for i := range path.Methods {
		name := i.String()
		m.sent[i], m.answered[i] = sent.WithLabelValues(name), answered.WithLabelValues(name)
		m.lost[i], m.rtt[i] = lost.WithLabelValues(name), rtt.WithLabelValues(name)
	}
	for _, c := range []prometheus.Collector{sent, answered, lost, rtt, m.rejected} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("register probe metrics: %w", err)
		}
	}
	return m, nil
}

func (m *metrics) observe(method path.Method, answered bool, rtt time.Duration) {
	if !answered {
		m.lost[method].Inc()
		return
	}
	m.answered[method].Inc()
	if rtt > 0 {
		m.rtt[method].Observe(rtt.Seconds())
	}
}

func (m *metrics) reject(reason string) { m.rejected.WithLabelValues(reason).Inc() }
