// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"context"
	"net"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/kube-network-policies/pkg/api"
	"sigs.k8s.io/kube-network-policies/pkg/network"
	"sigs.k8s.io/kube-network-policies/pkg/networkpolicy"
	"sigs.k8s.io/kube-network-policies/pkg/podinfo"
	npa "sigs.k8s.io/kube-network-policies/plugins/npa-v1alpha2"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"
	npafake "sigs.k8s.io/network-policy-api/pkg/client/clientset/versioned/fake"
	npainformers "sigs.k8s.io/network-policy-api/pkg/client/informers/externalversions"

	"github.com/heliograph-dev/heliograph/policy"
	"github.com/heliograph-dev/heliograph/policy/eval"
)

// theirs is the engine, fed through the indexers of informers that never ran.
type theirs struct {
	engine                            *networkpolicy.PolicyEngine
	pods, namespaces, ingress, egress cache.Indexer
	nodes, clusters                   cache.Indexer
}

// byDirection asks one evaluator for ingress and another for egress, each of which knows the policies of that
// direction alone: a policy of the other direction is taken for a final decision otherwise (TestOracleIsWrong).
type byDirection struct {
	*networkpolicy.StandardNetworkPolicy // for ingress, and all else
	egress                               *networkpolicy.StandardNetworkPolicy
}

func (b byDirection) EvaluateEgress(ctx context.Context, p *network.Packet, src, dst *api.PodInfo) (api.Verdict, error) {
	return b.egress.EvaluateEgress(ctx, p, src, dst)
}

func newTheirs() *theirs {
	f := informers.NewSharedInformerFactory(fake.NewSimpleClientset(), 0)
	pods, namespaces := f.Core().V1().Pods(), f.Core().V1().Namespaces()
	ingress, egress := f.Networking().V1().NetworkPolicies(), informers.NewSharedInformerFactory(fake.NewSimpleClientset(), 0).Networking().V1().NetworkPolicies()
	nodes := f.Core().V1().Nodes()
	clusters := npainformers.NewSharedInformerFactory(npafake.NewSimpleClientset(), 0).Policy().V1alpha2().ClusterNetworkPolicies()
	return &theirs{
		engine: networkpolicy.NewPolicyEngine(podinfo.NewInformerProvider(pods, namespaces, nil, nil), []api.PolicyEvaluator{
			npa.NewClusterNetworkPolicy(policyv1alpha2.AdminTier, clusters, nil, nodes.Lister()),
			byDirection{networkpolicy.NewStandardNetworkPolicy("node", namespaces, pods, ingress), networkpolicy.NewStandardNetworkPolicy("node", namespaces, pods, egress)},
			npa.NewClusterNetworkPolicy(policyv1alpha2.BaselineTier, clusters, nil, nodes.Lister()),
		}),
		nodes:      nodes.Informer().GetIndexer(),
		clusters:   clusters.Informer().GetIndexer(),
		pods:       pods.Informer().GetIndexer(),
		namespaces: namespaces.Informer().GetIndexer(),
		ingress:    ingress.Informer().GetIndexer(),
		egress:     egress.Informer().GetIndexer(),
	}
}

// load replaces the objects. If literal, policies are handed over as they are; otherwise as an API
// server would have them, so that the known faults of the engine do not show.
func (o *theirs) load(t *testing.T, w *world, literal bool) {
	t.Helper()
	var pods, namespaces, ingress, egress, nodes, clusters []any
	for _, n := range w.nodes {
		nodes = append(nodes, n)
	}
	for _, p := range w.clusters {
		clusters = append(clusters, p)
	}
	for _, p := range w.pods {
		pods = append(pods, p)
	}
	for _, n := range w.namespaces {
		namespaces = append(namespaces, n)
	}
	for _, p := range w.policies {
		if literal {
			ingress, egress = append(ingress, p), append(egress, p)
			continue
		}
		p = normalised(p)
		if slices.Contains(p.Spec.PolicyTypes, networkingv1.PolicyTypeIngress) {
			ingress = append(ingress, p)
		}
		if slices.Contains(p.Spec.PolicyTypes, networkingv1.PolicyTypeEgress) {
			egress = append(egress, p)
		}
	}
	for indexer, list := range map[cache.Indexer][]any{
		o.pods: pods, o.namespaces: namespaces, o.ingress: ingress, o.egress: egress, o.nodes: nodes, o.clusters: clusters,
	} {
		if err := indexer.Replace(list, ""); err != nil {
			t.Fatal(err)
		}
	}
}

// normalised makes empty lists of rules absent, and fills in policyTypes.
func normalised(p *networkingv1.NetworkPolicy) *networkingv1.NetworkPolicy {
	p = p.DeepCopy()
	if len(p.Spec.Ingress) == 0 {
		p.Spec.Ingress = nil
	}
	if len(p.Spec.Egress) == 0 {
		p.Spec.Egress = nil
	}
	if len(p.Spec.PolicyTypes) == 0 {
		p.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
		if p.Spec.Egress != nil {
			p.Spec.PolicyTypes = append(p.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
		}
	}
	return p
}

func (o *theirs) allows(t *testing.T, p eval.Packet) bool {
	t.Helper()
	q := &network.Packet{
		Family: corev1.IPv4Protocol, SrcIP: net.IP(p.Src.AsSlice()), DstIP: net.IP(p.Dst.AsSlice()),
		SrcPort: int(p.SrcPort), DstPort: int(p.DstPort),
	}
	if p.Src.Is6() {
		q.Family = corev1.IPv6Protocol
	}
	// Theirs leaves Proto empty for all else, and so do we.
	switch p.Protocol {
	case policy.TCP:
		q.Proto = corev1.ProtocolTCP
	case policy.UDP:
		q.Proto = corev1.ProtocolUDP
	case policy.SCTP:
		q.Proto = corev1.ProtocolSCTP
	}
	ok, err := o.engine.EvaluatePacket(context.Background(), q)
	if err != nil {
		t.Fatal(err)
	}
	return ok
}
