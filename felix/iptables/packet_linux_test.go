// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"log/slog"
	"os"
	"slices"
	"testing"

	"github.com/heliograph-dev/heliograph/felix/policytest"
	"github.com/heliograph-dev/heliograph/internal/nettest"
	"github.com/heliograph-dev/heliograph/policy"
)

// open makes a driver of a variant on the kernel.
func open(t testing.TB, v Variant) *Table {
	t.Helper()
	k, err := Open(v, NewRestores())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.Close() })
	return New(k, slog.New(slog.DiscardHandler))
}

// longEnv asks for the long run.
const longEnv = "HELIOGRAPH_LONG"

// TestPackets: what becomes of real packets is what policy/eval says.
func TestPackets(t *testing.T) {
	o := policytest.Options{Packets: 1000}
	if os.Getenv(longEnv) == "1" {
		o.Packets = 5000
	}
	for _, v := range []Variant{NFT, Legacy} {
		t.Run(string(v), func(t *testing.T) {
			need(t, v)
			policytest.Run(t, func(t testing.TB) policytest.Renderer { return open(t, v) }, o)
		})
	}
}

// wrong is a renderer that gets one thing wrong.
type wrong struct {
	*Table
	rule     func(*policy.Rule)
	endpoint func(*policy.Endpoint)
}

func (w wrong) Update(d policy.Delta) {
	d.Policies, d.Endpoints = slices.Clone(d.Policies), slices.Clone(d.Endpoints)
	for i, c := range d.Policies {
		if c.Policy == nil || w.rule == nil {
			continue
		}
		p := *c.Policy
		p.Ingress, p.Egress = slices.Clone(p.Ingress), slices.Clone(p.Egress)
		for _, list := range [][]policy.Rule{p.Ingress, p.Egress} {
			for j := range list {
				w.rule(&list[j])
			}
		}
		d.Policies[i].Policy = &p
	}
	for i, c := range d.Endpoints {
		if c.Endpoint != nil && w.endpoint != nil {
			e := *c.Endpoint
			w.endpoint(&e)
			d.Endpoints[i].Endpoint = &e
		}
	}
	w.Table.Update(d)
}

// TestMistakesAreSeen: the packets find out a renderer that gets only one thing wrong, so a run without a
// mismatch says something of each.
func TestMistakesAreSeen(t *testing.T) {
	need(t, Legacy)
	transports := func(change func(*policy.Transport)) func(*policy.Rule) {
		return func(r *policy.Rule) {
			r.Match.Transport = slices.Clone(r.Match.Transport)
			for i := range r.Match.Transport {
				change(&r.Match.Transport[i])
			}
		}
	}
	for _, tt := range []struct {
		name     string
		rule     func(*policy.Rule)
		endpoint func(*policy.Endpoint)
	}{
		{"excluded addresses", func(r *policy.Rule) { r.Match.Source.Outside = policy.Addresses{} }, nil},
		{"excluded ports", func(r *policy.Rule) { r.Match.NotTransport = nil }, nil},
		{"source ports", transports(func(t *policy.Transport) { t.SourcePorts = policy.Ports{} }), nil},
		{"the end of a range", transports(func(t *policy.Transport) {
			t.DestinationPorts.Ranges = slices.Clone(t.DestinationPorts.Ranges)
			for i := range t.DestinationPorts.Ranges {
				t.DestinationPorts.Ranges[i].Last = t.DestinationPorts.Ranges[i].First
			}
		}), nil},
		{"named ports", transports(func(t *policy.Transport) { t.DestinationPorts.Named = nil }), nil},
		{"ICMP codes", transports(func(t *policy.Transport) { t.ICMP.HasCode = false }), nil},
		{"a pass", func(r *policy.Rule) {
			if r.Action == policy.Pass {
				r.Action = policy.Allow
			}
		}, nil},
		{"pods that nobody knows", nil, func(e *policy.Endpoint) { e.Unknown = false }},
		{"the last default", nil, func(e *policy.Endpoint) { e.Ingress.Default = policy.Allow }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			nettest.Run(t, func(t *testing.T) {
				o := policytest.Options{Seed: 42, Packets: 4000, NoShrink: true}
				r := policytest.Check(t, func(t testing.TB) policytest.Renderer { return wrong{open(t, Legacy), tt.rule, tt.endpoint} }, o)
				if len(r.Mismatches) == 0 {
					t.Errorf("not seen: %s", r)
				}
				t.Logf("seen after %d packets", r.Packets)
			})
		})
	}
}
