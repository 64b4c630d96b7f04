// SPDX-License-Identifier: Apache-2.0

package reflectd

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/heliograph-dev/heliograph/bgp"
	"github.com/heliograph-dev/heliograph/bgp/reflector"
)

// Collector makes metrics of a reflector's snapshot, when they are asked for.
type Collector struct {
	engine *reflector.Reflector

	up, since, flaps, in, out, rejected, malformed, updates, lag, damped, refused *prometheus.Desc
	members, messages, octets, tables, groupLag                                   *prometheus.Desc
	routes, paths, attributes                                                     *prometheus.Desc
}

// NewCollector collects from the engine.
func NewCollector(engine *reflector.Reflector) *Collector {
	d := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("heliograph_reflector_"+name, help, labels, nil)
	}
	session := func(name, help string, more ...string) *prometheus.Desc {
		return d("session_"+name, help, append([]string{"peer", "address"}, more...)...)
	}
	group := func(name, help string) *prometheus.Desc { return d("group_"+name, help, "group") }
	return &Collector{
		engine:    engine,
		up:        session("up", "1 while the session is established.", "state"),
		since:     session("since_seconds", "When it last came up or went down, in Unix time."),
		flaps:     session("flaps_total", "How often it went down."),
		in:        session("prefixes_in", "Routes that it sent and that are kept."),
		out:       session("prefixes_out", "Routes that it is told of."),
		rejected:  session("prefixes_rejected_total", "Routes that it sent and that policy or loop checks refused."),
		malformed: session("malformed_updates_total", "UPDATEs that RFC 7606 made withdrawals or lost attributes of."),
		updates:   session("updates_received_total", "UPDATEs received."),
		lag:       session("lag_octets", "Octets of its group's log that it has yet to take."),
		damped:    session("damped", "1 while connections are refused since sessions ended again and again."),
		refused:   session("connections_refused_total", "Connections that were refused: damped, held down, or too many at once."),
		members:   group("members", "Sessions of the update group."),
		messages:  group("messages_total", "UPDATEs built, once for all members."),
		octets:    group("octets_total", "Octets built, once for all members."),
		tables:    group("tables_total", "How often the whole table was built."),
		groupLag:  group("max_lag_octets", "Octets that the slowest member has yet to take."),
		routes:    d("routes", "Prefixes known.", "family"),
		paths:     d("paths", "Paths known.", "family"),
		attributes: d("attribute_sets",
			"Distinct sets of path attributes."),
	}
}

// Describe implements prometheus.Collector.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

// Collect implements prometheus.Collector.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	s := c.engine.Snapshot()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
	}
	for _, x := range s.Sessions {
		who := []string{x.Peer, x.Address.String()}
		up := 0.0
		if x.State == bgp.StateEstablished {
			up = 1
		}
		gauge(c.up, up, append(who, string(x.State))...)
		gauge(c.since, float64(x.Since.Unix()), who...)
		counter(c.flaps, float64(x.Flaps), who...)
		gauge(c.in, float64(x.PrefixesIn), who...)
		gauge(c.out, float64(x.PrefixesOut), who...)
		counter(c.rejected, float64(x.Rejected), who...)
		counter(c.malformed, float64(x.Malformed), who...)
		counter(c.updates, float64(x.Updates), who...)
		gauge(c.lag, float64(x.Lag), who...)
		damped := 0.0
		if !x.Damped.IsZero() {
			damped = 1
		}
		gauge(c.damped, damped, who...)
		counter(c.refused, float64(x.Refused), who...)
	}
	for _, g := range s.Groups {
		id := strconv.Itoa(g.ID)
		gauge(c.members, float64(g.Members), id)
		counter(c.messages, float64(g.Messages), id)
		counter(c.octets, float64(g.Bytes), id)
		counter(c.tables, float64(g.Tables), id)
		gauge(c.groupLag, float64(g.MaxLag), id)
	}
	for i, f := range []bgp.Family{bgp.IPv4, bgp.IPv6} {
		gauge(c.routes, float64(s.Routes[i]), f.String())
		gauge(c.paths, float64(s.Paths[i]), f.String())
	}
	gauge(c.attributes, float64(s.Attrs))
}
