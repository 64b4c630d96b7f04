// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/heliograph-dev/heliograph/policy"
	"github.com/heliograph-dev/heliograph/policy/eval"
)

// TestOracleIsWrong lists where the oracle departs from the API, with the sentence that decides. When
// one of these fails because the oracle was mended, its exception in TestOracle can go.
func TestOracleIsWrong(t *testing.T) {
	ingress := []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
	tcp, http := corev1.ProtocolTCP, intstr.FromString("http")
	toHTTP := networkingv1.NetworkPolicySpec{
		PolicyTypes: ingress,
		Ingress:     []networkingv1.NetworkPolicyIngressRule{{Ports: []networkingv1.NetworkPolicyPort{{Protocol: &tcp, Port: &http}}}},
	}
	fromClients := networkingv1.NetworkPolicySpec{
		PolicyTypes: ingress,
		Ingress:     []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{}}}}},
	}
	always := corev1.ContainerRestartPolicyAlways
	client, server := netip.MustParseAddr("10.244.0.1"), netip.MustParseAddr("10.244.0.2")
	for _, tt := range []struct {
		name   string
		spec   networkingv1.NetworkPolicySpec
		change func(client, server *corev1.Pod)
		base   *policyv1alpha2.ClusterNetworkPolicy
		packet eval.Packet
		want   policy.Action // theirs is the opposite
	}{
		{
			name:   `"If this field is empty then this NetworkPolicy does not allow any traffic": an empty list is as empty as none`,
			spec:   networkingv1.NetworkPolicySpec{PolicyTypes: ingress, Ingress: []networkingv1.NetworkPolicyIngressRule{}},
			packet: eval.Packet{Src: client, Dst: server, Protocol: policy.TCP, DstPort: 80},
			want:   policy.Deny,
		},
		{
			name:   "policyTypes: \"If this field is not specified, it will default\"; the API server does that, but for objects from elsewhere",
			spec:   networkingv1.NetworkPolicySpec{},
			packet: eval.Packet{Src: client, Dst: server, Protocol: policy.TCP, DstPort: 80},
			want:   policy.Deny,
		},
		{
			name:   "a name is no number: port 0 is not every named port",
			spec:   toHTTP,
			packet: eval.Packet{Src: client, Dst: server, Protocol: policy.TCP, DstPort: 0},
			want:   policy.Deny,
		},
		{
			name: "a sidecar is a container whose ports have names too",
			spec: toHTTP,
			change: func(_, server *corev1.Pod) {
				server.Spec.InitContainers = []corev1.Container{{RestartPolicy: &always, Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 80, Protocol: tcp}}}}
			},
			packet: eval.Packet{Src: client, Dst: server, Protocol: policy.TCP, DstPort: 80},
			want:   policy.Allow,
		},
		{
			name:   "the address of a pod that has ended may be another's",
			spec:   fromClients,
			change: func(client, _ *corev1.Pod) { client.Status.Phase = corev1.PodSucceeded },
			packet: eval.Packet{Src: client, Dst: server, Protocol: policy.TCP, DstPort: 80},
			want:   policy.Deny,
		},
		{
			name:   `"A Pod cannot block access to itself" (concepts/services-networking/network-policies)`,
			spec:   networkingv1.NetworkPolicySpec{PolicyTypes: ingress},
			packet: eval.Packet{Src: server, Dst: server, Protocol: policy.TCP, DstPort: 80},
			want:   policy.Allow,
		},
		{
			name:   `"Further evaluation only happens for Pods not selected": a policy of egress decides nothing about ingress, so Baseline is asked`,
			spec:   networkingv1.NetworkPolicySpec{PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}},
			base:   denyIngress(),
			packet: eval.Packet{Src: netip.MustParseAddr("10.244.0.3"), Dst: server, Protocol: policy.TCP, DstPort: 80},
			want:   policy.Deny,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := &world{
				pods:       []*corev1.Pod{simplePod("client", client), simplePod("server", server)},
				namespaces: []*corev1.Namespace{{ObjectMeta: metav1.ObjectMeta{Name: "prod"}}},
				policies:   []*networkingv1.NetworkPolicy{{ObjectMeta: metav1.ObjectMeta{Namespace: "prod", Name: "p"}, Spec: tt.spec}},
			}
			if tt.base != nil {
				w.clusters = append(w.clusters, tt.base)
				w.pods = append(w.pods, otherPod(netip.MustParseAddr("10.244.0.3")))
				w.namespaces = append(w.namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "other"}})
			}
			if tt.change != nil {
				tt.change(w.pods[0], w.pods[1])
			}
			oracle := newTheirs()
			oracle.load(t, w, true)
			if got := verdict(w.ours(t).allows(tt.packet)); got != tt.want {
				t.Errorf("ours: got %s, want %s", got, tt.want)
			}
			if got := verdict(oracle.allows(t, tt.packet)); got == tt.want {
				t.Errorf("the oracle says %s too by now", got)
			}
		})
	}
}

func simplePod(name string, ip netip.Addr) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "prod", Name: name}}
	p.Spec.NodeName = "node0"
	p.Status.PodIP = ip.String()
	p.Status.PodIPs = []corev1.PodIP{{IP: ip.String()}}
	return p
}

// otherPod is of a namespace without policies of its own.
func otherPod(ip netip.Addr) *corev1.Pod {
	p := simplePod("other", ip)
	p.Namespace = "other"
	return p
}

func denyIngress() *policyv1alpha2.ClusterNetworkPolicy {
	p := &policyv1alpha2.ClusterNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: "base"}}
	p.Spec.Tier, p.Spec.Subject.Namespaces = policyv1alpha2.BaselineTier, &metav1.LabelSelector{}
	p.Spec.Ingress = []policyv1alpha2.ClusterNetworkPolicyIngressRule{{
		Action: policyv1alpha2.ClusterNetworkPolicyRuleActionDeny, From: []policyv1alpha2.ClusterNetworkPolicyIngressPeer{{Namespaces: &metav1.LabelSelector{}}},
	}}
	return p
}
