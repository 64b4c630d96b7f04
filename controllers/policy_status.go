// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	policyv1alpha2 "sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/policy"
	"github.com/heliograph-dev/heliograph/policy/compile"
)

// policyView is what the status of policies is computed from. It is read only.
type policyView struct {
	problems map[policy.PolicyID][]compile.Problem
	inTier   map[string]int
	places   map[place]*occupants
}

// place is an order in a tier.
type place struct {
	tier  string
	order int32
}

// occupants are the policies of a place. Those of different namespaces cannot meet.
type occupants struct {
	globals []policy.PolicyID
	in      map[string][]policy.PolicyID // by namespace
}

// networkPolicyOrder is the place of Kubernetes' NetworkPolicies in the tier default.
const networkPolicyOrder = 1000

func ourID(p *v1alpha1.NetworkPolicy) policy.PolicyID {
	return policy.PolicyID{Kind: policy.HeliographNetworkPolicy, Namespace: p.Namespace, Name: p.Name}
}

func globalID(p *v1alpha1.GlobalNetworkPolicy) policy.PolicyID {
	return policy.PolicyID{Kind: policy.GlobalNetworkPolicy, Name: p.Name}
}

func k8sID(p *networkingv1.NetworkPolicy) policy.PolicyID {
	return policy.PolicyID{Kind: policy.NetworkPolicy, Namespace: p.Namespace, Name: p.Name}
}

func clusterID(p *policyv1alpha2.ClusterNetworkPolicy) policy.PolicyID {
	return policy.PolicyID{Kind: policy.ClusterNetworkPolicy, Name: p.Name}
}

// newPolicyView compiles everything, for a node that has no pods.
func newPolicyView(l *policyLists) *policyView {
	v := &policyView{problems: map[policy.PolicyID][]compile.Problem{}, inTier: map[string]int{}, places: map[place]*occupants{}}
	c := compile.New()
	for i := range l.tiers.Items {
		c.SetTier(&l.tiers.Items[i])
	}
	for i := range l.services.Items {
		m := &l.services.Items[i]
		c.SetService(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: m.Namespace, Name: m.Name}})
	}
	for i := range l.k8s.Items {
		p := &l.k8s.Items[i]
		c.SetNetworkPolicy(p)
		v.occupy(k8sID(p), policy.DefaultTier, networkPolicyOrder)
	}
	for i := range l.policies.Items {
		p := &l.policies.Items[i]
		c.SetPolicy(p)
		v.add(ourID(p), &p.Spec)
	}
	for i := range l.globals.Items {
		p := &l.globals.Items[i]
		c.SetGlobalPolicy(p)
		v.add(globalID(p), &p.Spec.PolicySpec)
	}
	for i := range l.clusters.Items {
		p := &l.clusters.Items[i]
		c.SetClusterNetworkPolicy(p)
		v.occupy(clusterID(p), string(p.Spec.Tier), p.Spec.Priority)
	}
	for _, p := range c.Problems() {
		v.problems[p.Policy] = append(v.problems[p.Policy], p)
	}
	return v
}

func (v *policyView) add(id policy.PolicyID, spec *v1alpha1.PolicySpec) {
	v.inTier[spec.Tier]++
	if spec.Order != nil {
		v.occupy(id, spec.Tier, *spec.Order)
	}
}

func (v *policyView) occupy(id policy.PolicyID, tier string, order int32) {
	at := place{tier, order}
	o := v.places[at]
	if o == nil {
		o = &occupants{in: map[string][]policy.PolicyID{}}
		v.places[at] = o
	}
	if id.Namespace == "" {
		o.globals = append(o.globals, id)
	} else {
		o.in[id.Namespace] = append(o.in[id.Namespace], id)
	}
}

// condition is the Ready condition of a policy of ours.
func (v *policyView) condition(id policy.PolicyID, spec *v1alpha1.PolicySpec) condition {
	if mistakes := v.mistakes(id); mistakes != "" {
		return condition{metav1.ConditionFalse, v1alpha1.ReasonInvalid, mistakes + "; what cannot be read denies everything that reaches it"}
	}
	if missing := join(v.problems[id]); missing != "" {
		return condition{metav1.ConditionFalse, v1alpha1.ReasonMissing, missing}
	}
	message := "in force"
	if spec.Enforcement == v1alpha1.Audit {
		message = "in force as an audit, which decides nothing"
	}
	if spec.Order != nil {
		message += v.neighbours(id, place{spec.Tier, *spec.Order})
	}
	return condition{metav1.ConditionTrue, v1alpha1.ReasonAccepted, message}
}

// clusterCondition is the Ready condition of a ClusterNetworkPolicy.
func (v *policyView) clusterCondition(p *policyv1alpha2.ClusterNetworkPolicy) condition {
	id := clusterID(p)
	if mistakes := v.mistakes(id); mistakes != "" {
		return condition{metav1.ConditionFalse, v1alpha1.ReasonInvalid, mistakes + "; an Accept rule that is not understood matches nothing, any other denies everything"}
	}
	message := "in force" + v.neighbours(id, place{string(p.Spec.Tier), p.Spec.Priority})
	return condition{metav1.ConditionTrue, v1alpha1.ReasonAccepted, message}
}

// mistakes is what is wrong with a policy by itself; empty: nothing.
func (v *policyView) mistakes(id policy.PolicyID) string {
	var list []compile.Problem
	for _, p := range v.problems[id] {
		if !p.Missing {
			list = append(list, p)
		}
	}
	return join(list)
}

func join(problems []compile.Problem) string {
	var parts []string
	for i, p := range problems {
		if i == maxErrors {
			parts = append(parts, fmt.Sprintf("and %d more", len(problems)-maxErrors))
			break
		}
		parts = append(parts, p.Field+": "+p.Reason)
	}
	return strings.Join(parts, "; ")
}

// neighbours names the others of the same place that may select the same pods.
func (v *policyView) neighbours(id policy.PolicyID, at place) string {
	o := v.places[at]
	lists := [][]policy.PolicyID{o.globals, o.in[id.Namespace]}
	if id.Namespace == "" {
		lists = lists[:1]
		for _, list := range o.in {
			lists = append(lists, list)
		}
	}
	var first policy.PolicyID
	n := 0
	for _, list := range lists {
		for _, other := range list {
			if other == id {
				continue
			}
			if n++; n == 1 || other.Compare(first) < 0 {
				first = other
			}
		}
	}
	switch n {
	case 0:
		return ""
	case 1:
		return fmt.Sprintf("; %s has the order %d too, so that names decide which is asked first", first, at.order)
	}
	return fmt.Sprintf("; %s and %d more have the order %d too, so that names decide which is asked first", first, n-1, at.order)
}
