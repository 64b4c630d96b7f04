// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/heliograph-dev/heliograph/felix/iptables"
	"github.com/heliograph-dev/heliograph/felix/nftpolicy"
	"github.com/heliograph-dev/heliograph/policy"
	"github.com/heliograph-dev/heliograph/test/bench/sandbox"
	"github.com/heliograph-dev/heliograph/test/bench/table"
)

const (
	trafficRounds = 7
	slice         = 700 * time.Millisecond
	// applied is how many policies select the server itself, of which the last lets the client in.
	applied = 10
	// most that the traffic may lose from no policy to all of them: a share.
	most = 0.03
)

// renderer is what both dataplanes are.
type renderer interface {
	Update(d policy.Delta)
	Apply(ctx context.Context) error
	Delete(ctx context.Context) error
}

// measures are what is compared, with how it is printed.
var measures = []struct {
	name  string
	unit  func(float64) string
	of    func(*pair, time.Duration) (float64, error)
	bound bool
}{
	{"requests/s on open connections", rate, (*pair).requests, true},
	{"bytes/s", func(v float64) string { return fmt.Sprintf("%.2f Gbit/s", 8*v/1e9) }, (*pair).stream, true},
	{"new connections/s", rate, (*pair).connections, false},
}

func rate(v float64) string { return fmt.Sprintf("%.0f", v) }

// MeasureTraffic measures what policy costs the packets: two pods of a node with policies, beside the same of
// a node without any rule, in turns.
func MeasureTraffic(ctx context.Context) ([]table.Table, error) {
	policed, err := newPair("policed")
	if err != nil {
		return nil, err
	}
	plain, err := newPair("plain")
	if err != nil {
		return nil, err
	}
	t := table.Table{
		Title: "Traffic under policy",
		Note: fmt.Sprintf("Two pods of one node, %d connections at once; %d policies (of those there are) select the server, and the last lets the client in. Beside: the same on a node without a rule. %d turns of %s; medians, also of the ratios.",
			parallel, applied, trafficRounds, slice),
	}
	for _, dataplane := range []string{"nftables", "iptables"} {
		var none, rows []table.Row
		for _, n := range []int{0, 100, policies} {
			if rows, err = measureWith(ctx, dataplane, n, policed, plain); err != nil {
				return nil, fmt.Errorf("%s with %d policies: %w", dataplane, n, err)
			}
			if n == 0 {
				none = rows
			}
			t.Rows = append(t.Rows, rows...)
		}
		t.Rows = append(t.Rows, grown(dataplane, none, rows)...)
	}
	return []table.Table{t}, nil
}

func openRenderer(dataplane string) (renderer, error) {
	if dataplane == "iptables" {
		k, err := iptables.Open(iptables.NFT, iptables.NewRestores())
		if err != nil {
			return nil, err
		}
		return iptables.New(k, slog.New(slog.DiscardHandler)), nil
	}
	k, err := nftpolicy.Open()
	if err != nil {
		return nil, err
	}
	return nftpolicy.New(k, slog.New(slog.DiscardHandler)), nil
}

func measureWith(ctx context.Context, dataplane string, n int, policed, plain *pair) (rows []table.Row, err error) {
	err = sandbox.In(policed.name+"-node", func() error {
		r, err := openRenderer(dataplane)
		if err != nil {
			return err
		}
		r.Update(policedState(n).Delta())
		if err := r.Apply(ctx); err != nil {
			return err
		}
		if rows, err = compare(dataplane, n, policed, plain); err != nil {
			return err
		}
		return r.Delete(ctx)
	})
	return rows, err
}

func compare(dataplane string, n int, policed, plain *pair) ([]table.Row, error) {
	var rows []table.Row
	for _, m := range measures {
		var ours, theirs, ratios []float64
		for range trafficRounds {
			us, err := m.of(policed, slice)
			if err != nil {
				return nil, err
			}
			them, err := m.of(plain, slice)
			if err != nil {
				return nil, err
			}
			ours, theirs, ratios = append(ours, us), append(theirs, them), append(ratios, us/them)
		}
		rows = append(rows, table.Row{
			What: fmt.Sprintf("%s, %s, %d policies", m.name, dataplane, n), Ours: m.unit(middle(ours)), Beside: "no rule", Theirs: m.unit(middle(theirs)),
			Ratio: middle(ratios),
		})
	}
	return rows, nil
}

// grown compares what many policies leave of the traffic with what none leave of it.
func grown(dataplane string, none, all []table.Row) []table.Row {
	var rows []table.Row
	for i, m := range measures {
		row := table.Row{
			What: fmt.Sprintf("%s, %s, the share that is left by the most policies", m.name, dataplane), Ours: fmt.Sprintf("%.3f", all[i].Ratio),
			Beside: "by none", Theirs: fmt.Sprintf("%.3f", none[i].Ratio), Ratio: all[i].Ratio / none[i].Ratio,
		}
		if m.bound && dataplane == "nftables" {
			row.Target = table.AtLeast(1 - most)
		}
		rows = append(rows, row)
	}
	return rows
}

func middle(v []float64) float64 { return slices.Sorted(slices.Values(v))[len(v)/2] }

// policedState is n policies on the node, and the two pods.
func policedState(n int) *policy.State {
	s := many(n)
	client := &policy.Endpoint{
		ID: policy.EndpointID{Namespace: "bench", Name: "client"}, Device: clientDevice, IPs: []netip.Addr{clientIP},
		Ingress: policy.Chain{Default: policy.Allow}, Egress: policy.Chain{Default: policy.Allow},
	}
	server := *client
	server.ID.Name, server.Device, server.IPs = "server", serverDevice, []netip.Addr{serverIP}
	s.Endpoints[client.ID], s.Endpoints[server.ID] = client, &server
	if n == 0 {
		return s
	}
	var ids []policy.PolicyID
	for i := range applied - 1 {
		ids = append(ids, policy.PolicyID{Namespace: "bench", Name: fmt.Sprint("policy-", i)})
	}
	id := policy.PolicyID{Namespace: "bench", Name: "lets-the-client-in"}
	s.Sets["client"] = &policy.Set{Kind: policy.AddressSet, Members: map[policy.Member]struct{}{{Prefix: netip.PrefixFrom(clientIP, 32)}: {}}}
	s.Policies[id] = &policy.Policy{ID: id, Ingress: []policy.Rule{{
		ID: policy.RuleID{Policy: id}, Action: policy.Allow, Match: policy.Match{Source: policy.Peer{Within: []policy.Addresses{{Sets: []policy.SetID{"client"}}}}},
	}}}
	server.Ingress.Tiers = []policy.Tier{{Name: policy.DefaultTier, Policies: append(ids, id), Default: policy.Deny}}
	return s
}
