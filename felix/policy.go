// SPDX-License-Identifier: Apache-2.0

package felix

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"sync/atomic"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/felix/dnsgate"
	"github.com/heliograph-dev/heliograph/felix/domains"
	"github.com/heliograph-dev/heliograph/felix/enforce"
	"github.com/heliograph-dev/heliograph/felix/feed"
	"github.com/heliograph-dev/heliograph/felix/iptables"
	"github.com/heliograph-dev/heliograph/felix/link"
	"github.com/heliograph-dev/heliograph/felix/nflog"
	"github.com/heliograph-dev/heliograph/felix/nftpolicy"
	"github.com/heliograph-dev/heliograph/felix/snapshot"
	"github.com/heliograph-dev/heliograph/felix/watch"
	"github.com/heliograph-dev/heliograph/policy"
	"github.com/heliograph-dev/heliograph/policy/compile"
)

// policyPart is the part of the agent that enforces network policy.
type policyPart struct {
	feed     *feed.Feed
	journal  *feed.Journal
	kernel   *nftpolicy.Kernel
	links    *link.Kernel
	iptables map[iptables.Variant]*iptables.Kernel // of the enforcer's goroutine
	variant  iptables.Variant                      // Auto: not found out yet
	names    *dnsgate.Kernel
	learner  *domains.Learner
	restores *iptables.Restores
	enforcer *enforce.Enforcer
	heart    *heart
	pokes    chan struct{} // somebody else changed our rules
	chosen   atomic.Pointer[choice]
	choices  chan struct{} // chosen changed
	log      *slog.Logger
}

// openPolicy opens the copy on disk and the kernel. Nothing is written yet.
func openPolicy(opts Options, log *slog.Logger) (*policyPart, error) {
	p := &policyPart{
		feed: feed.New(), heart: &heart{name: "policy loop"}, iptables: map[iptables.Variant]*iptables.Kernel{},
		restores: iptables.NewRestores(), pokes: make(chan struct{}, 1), choices: make(chan struct{}, 1), log: log,
	}
	p.heart.Beat(time.Now())
	var err error
	types := watch.FeedTypes()
	types[domains.Records] = func() client.Object { return &domains.Record{} }
	if p.journal, err = feed.OpenJournal(filepath.Join(opts.StateDir, "policy.db"), types, log); err != nil {
		return nil, err
	}
	if p.names, err = dnsgate.Open(); err != nil {
		return nil, fmt.Errorf("open nftables for answers of DNS: %w", err)
	}
	if p.kernel, err = nftpolicy.Open(); err != nil {
		return nil, fmt.Errorf("open nftables for policy: %w", err)
	}
	if p.links, err = link.Open(); err != nil {
		return nil, fmt.Errorf("open netlink socket for policy: %w", err)
	}
	return p, nil
}

// refreshInterval is how often all that is in the kernel is read back.
func (a *Agent) refreshInterval() time.Duration {
	if r := a.latest.Load(); r != nil {
		return r.Felix.RefreshInterval
	}
	return snapshot.DefaultRefreshInterval
}

// choice is what the configuration says of policy.
type choice struct {
	dataplane  string
	dnsServers []string
	failsafes  compile.Failsafes
}

// choose notes by which dataplane policy should be enforced, whom to believe about names, and what no policy may
// take from the node.
func (p *policyPart) choose(r *Report) {
	c := choice{dataplane: r.Felix.Dataplane, dnsServers: r.Felix.DNSServers, failsafes: failsafes(r)}
	if old := p.chosen.Swap(&c); old != nil && reflect.DeepEqual(*old, c) {
		return
	}
	select {
	case p.choices <- struct{}{}:
	default:
	}
}

func failsafes(r *Report) compile.Failsafes {
	return compile.Failsafes{
		Inbound: r.Felix.FailsafeInbound, Outbound: r.Felix.FailsafeOutbound,
		BGP: r.BGPPorts, VXLAN: r.Felix.VXLANPort, Probe: r.Felix.ProbePort,
	}
}

// dataplane is the one chosen; empty as long as nobody knows.
func (p *policyPart) dataplane() string {
	if c := p.chosen.Load(); c != nil {
		return c.dataplane
	}
	return ""
}

// failsafes are what was chosen. The dataplane is known first, and so are they.
func (p *policyPart) failsafes() compile.Failsafes {
	if c := p.chosen.Load(); c != nil {
		return c.failsafes
	}
	return compile.Failsafes{}
}

// dnsServers are those that were chosen.
func (p *policyPart) dnsServers() []string {
	if c := p.chosen.Load(); c != nil {
		return c.dnsServers
	}
	return nil
}

// wire connects it with the rest of the agent.
func (p *policyPart) wire(a *Agent) error {
	var err error
	p.enforcer, err = enforce.New(enforce.Options{
		Feed: p.feed, Journal: p.journal, Pods: a.pods.manager.Attachments, PodPokes: a.pods.changed,
		Choice: p.dataplane, Node: a.opts.NodeName, Failsafes: p.failsafes, Choices: p.choices, Dataplanes: p.dataplanes(), Disturbed: p.pokes,
		Names: enforce.Names{
			Gate: dnsgate.New(p.names), Resolvers: p.dnsServers, Want: func(patterns []string) { p.learner.Want(patterns) },
		},
		Flows: a.pods.tracked, NodeAddresses: p.nodeAddresses, RefreshInterval: a.refreshInterval, Heart: p.heart, Changed: a.reporter.poke, Log: a.log, Registerer: a.registry,
	})
	if err != nil {
		return err
	}
	known, err := p.journal.LoadKind(domains.Records)
	if err != nil {
		// They are told again by whoever asks.
		a.log.Warn("what names of domains stood for is forgotten", "error", err)
	}
	p.learner = domains.NewLearner(domains.Options{
		Feed: p.feed, InForce: p.enforcer.Obeyed, Used: p.enforcer.Used, Log: a.log, Registerer: a.registry,
	}, known)
	return nil
}

// dnsRetry is how soon a listener that failed is tried again.
const dnsRetry = 5 * time.Second

// listenDNS hears the answers that the kernel holds. Without it they pass, and nothing new is learnt.
func (p *policyPart) listenDNS(ctx context.Context) error {
	for failed := false; ctx.Err() == nil; {
		if err := dnsgate.Listen(ctx, p.learner.Heard); err != nil && !failed {
			failed = true
			p.log.Error("answers of DNS are not read: policy about names of domains learns no new address", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(dnsRetry):
		}
	}
	return nil
}

// monitor pokes when somebody else changes our rules.
func (p *policyPart) monitor(ctx context.Context) error { return p.kernel.Monitor(ctx, p.disturbed) }

// monitorIPTables does so for iptables-nft.
func (p *policyPart) monitorIPTables(ctx context.Context) error {
	return p.restores.Monitor(ctx, p.disturbed)
}

func (p *policyPart) disturbed() {
	select {
	case p.pokes <- struct{}{}:
	default:
	}
}

// listen hears of packets that policy logs. Without it everything else goes on.
func (p *policyPart) listen(ctx context.Context) error {
	if err := nflog.Listen(ctx, policy.LogGroup, p.enforcer.Heard); err != nil {
		p.log.Error("packets that policy denies or logs are not told", "error", err)
	}
	<-ctx.Done()
	return nil
}

func (p *policyPart) close() error { return p.journal.Close() }

// nodeAddresses are all that the node itself sends from.
func (p *policyPart) nodeAddresses() ([]netip.Addr, error) {
	found, err := p.links.Addresses()
	if err != nil {
		return nil, err
	}
	addrs := make([]netip.Addr, 0, len(found))
	for _, f := range found {
		addrs = append(addrs, f.Prefix.Addr())
	}
	return addrs, nil
}

// status is what the API is told.
func (p *policyPart) status() policyReport {
	s := p.enforcer.Status()
	r := policyReport{problems: s.Problems, inForce: s.InForce}
	if s.Dataplane != "" {
		r.status = &v1alpha1.NodePolicyStatus{
			Dataplane: s.Dataplane, Endpoints: int32(s.Endpoints), ClosedEndpoints: int32(s.Closed), //nolint:gosec // few
			Policies: int32(s.Policies), Sets: int32(s.Sets), //nolint:gosec // few
		}
	}
	return r
}

// policyReport is what the API is told of policy.
type policyReport struct {
	status   *v1alpha1.NodePolicyStatus // nil: nothing was enforced yet
	problems []string
	inForce  bool
}

// addTo tells it. A node whose policy is not in force is not ready.
func (p policyReport) addTo(s *v1alpha1.NodeStatusStatus) {
	s.Policy = p.status
	s.Problems = slices.Concat(s.Problems, p.problems)
	s.Problems = s.Problems[:min(len(s.Problems), maxProblems)]
	for i, c := range s.Conditions {
		if c.Type == v1alpha1.ConditionReady && c.Status == metav1.ConditionTrue && !p.inForce {
			s.Conditions[i].Status, s.Conditions[i].Reason = metav1.ConditionFalse, "PolicyNotInForce"
			s.Conditions[i].Message = "network policy is not in force: see problems"
		}
	}
}
