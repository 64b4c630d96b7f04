// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/labels"
)

const (
	// stateEstablished is the one good state of a session.
	stateEstablished = "Established"
	// stateUnknown stands for the session of a node that does not report.
	stateUnknown = "Unknown"
	// maxListed is how many sessions a BGPPeer's status lists.
	maxListed = 64
	// maxErrors is how many of them its condition quotes.
	maxErrors = 3
)

// view is what the status of the configuration kinds is computed from. It is read only.
type view struct {
	namespace string
	nodes     []viewNode                 // by name
	secrets   map[string]map[string]bool // name, key: has a value
	felix     []v1alpha1.FelixConfiguration
}

// viewNode is a node with its sessions with BGPPeers, by name of the BGPPeer.
type viewNode struct {
	name     string
	labels   map[string]string
	reported bool // there is a NodeStatus
	silent   bool // what it reported is old: the node or its agent is out of reach
	reflects bool // it is a route reflector
	sessions map[string]*v1alpha1.BGPSessionStatus
}

func newView(namespace string, nodes []corev1.Node, statuses []v1alpha1.NodeStatus, secrets []corev1.Secret, felix []v1alpha1.FelixConfiguration) *view {
	v := &view{namespace: namespace, felix: felix, secrets: map[string]map[string]bool{}}
	reports := byName(statuses, func(s *v1alpha1.NodeStatus) string { return s.Name })
	for i := range nodes {
		n := viewNode{name: nodes[i].Name, labels: nodes[i].Labels, silent: readiness(&nodes[i]) == corev1.ConditionUnknown}
		if s := reports[n.name]; s != nil {
			n.reported = true
			n.silent = n.silent || stale(s)
			n.sessions = make(map[string]*v1alpha1.BGPSessionStatus, len(s.Status.Sessions))
			for j := range s.Status.Sessions {
				n.addSession(&s.Status.Sessions[j])
			}
			if r := s.Status.Reflector; r != nil {
				n.reflects = true
				for j := range r.Sessions {
					n.addSession(&r.Sessions[j])
				}
			}
		}
		v.nodes = append(v.nodes, n)
	}
	slices.SortFunc(v.nodes, func(a, b viewNode) int { return cmp.Compare(a.name, b.name) })
	for i := range secrets {
		keys := map[string]bool{}
		for k, value := range secrets[i].Data {
			keys[k] = len(value) > 0
		}
		v.secrets[secrets[i].Name] = keys
	}
	return v
}

func (n *viewNode) addSession(s *v1alpha1.BGPSessionStatus) {
	if peer, ok := strings.CutPrefix(s.Name, peerPrefix); ok {
		n.sessions[peer] = s
	}
}

// missingSecret says what is wrong with a password's Secret, or "".
func (v *view) missingSecret(p *v1alpha1.BGPPassword) string {
	if p == nil {
		return ""
	}
	name, key := p.SecretKeyRef.Name, p.SecretKeyRef.Key
	keys, ok := v.secrets[name]
	full, has := keys[key]
	var what string
	switch {
	case !ok:
		what = "does not exist"
	case !has:
		what = "has no key " + key
	case !full:
		what = fmt.Sprintf("has an empty value at key %s", key)
	default:
		return ""
	}
	return fmt.Sprintf("Secret %s/%s %s; sessions are held down", v.namespace, name, what)
}

// peerStatus is the status of a BGPPeer, from what its nodes report.
func (v *view) peerStatus(peer *v1alpha1.BGPPeer) (v1alpha1.BGPPeerStatus, condition) {
	s := v1alpha1.BGPPeerStatus{ObservedGeneration: peer.Generation}
	selector, err := labels.Parse(peer.Spec.NodeSelector)
	if err != nil {
		return s, condition{metav1.ConditionFalse, v1alpha1.ReasonInvalid, fmt.Sprintf("nodeSelector: %v; no node peers", err)}
	}
	unknown := 0
	for i := range v.nodes {
		n := &v.nodes[i]
		if peer.Spec.Node != "" && peer.Spec.Node != n.name || !selector.Matches(n.labels) {
			continue
		}
		if peer.Spec.ReflectorClient && !n.reflects {
			continue
		}
		s.Sessions++
		session := n.session(peer.Name)
		switch session.State {
		case stateEstablished:
			s.Established++
			continue
		case stateUnknown:
			unknown++
		}
		if len(s.Nodes) < maxListed {
			s.Nodes = append(s.Nodes, session)
		}
	}
	if s.Sessions == 0 {
		return s, condition{metav1.ConditionFalse, v1alpha1.ReasonNoNodeSelected, v.nobody(peer)}
	}
	if missing := v.missingSecret(peer.Spec.Password); missing != "" {
		return s, condition{metav1.ConditionFalse, v1alpha1.ReasonSecretMissing, missing}
	}
	return s, sessionsCondition(&s, unknown)
}

// session is the session of the node with the peer as far as it is known.
func (n *viewNode) session(peer string) v1alpha1.BGPPeerNodeStatus {
	s := n.sessions[peer]
	unknown := func(why string) v1alpha1.BGPPeerNodeStatus {
		return v1alpha1.BGPPeerNodeStatus{Node: n.name, State: stateUnknown, LastError: why}
	}
	switch {
	case !n.reported:
		return unknown("the agent of the node has not reported yet")
	case s == nil:
		return unknown("the agent of the node has not reported this session yet")
	case n.silent:
		return unknown("the node is out of reach; its last report said " + s.State)
	}
	return v1alpha1.BGPPeerNodeStatus{
		Node: n.name, State: s.State, Since: s.Since,
		PrefixesIn: s.PrefixesIn, PrefixesOut: s.PrefixesOut, LastError: s.LastError,
	}
}

func (v *view) nobody(peer *v1alpha1.BGPPeer) string {
	switch {
	case peer.Spec.ReflectorClient:
		return "reflectorClient: no node that is selected is a route reflector"
	case peer.Spec.Node != "":
		return fmt.Sprintf("there is no node %s", peer.Spec.Node)
	case peer.Spec.NodeSelector != "":
		return "nodeSelector selects no node"
	}
	return "there are no nodes"
}

func sessionsCondition(s *v1alpha1.BGPPeerStatus, unknown int) condition {
	message := fmt.Sprintf("%d of %d sessions are established", s.Established, s.Sessions)
	if s.Established == s.Sessions {
		return condition{metav1.ConditionTrue, v1alpha1.ReasonSessionsUp, message}
	}
	for i, n := range s.Nodes {
		if i == maxErrors {
			message += fmt.Sprintf("; and %d more", int(s.Sessions-s.Established)-maxErrors)
			break
		}
		message += fmt.Sprintf("; %s: %s", n.Node, n.State)
		if n.LastError != "" {
			message += " (" + n.LastError + ")"
		}
	}
	if int(s.Sessions-s.Established) == unknown {
		return condition{metav1.ConditionUnknown, v1alpha1.ReasonSessionsUnknown, message}
	}
	return condition{metav1.ConditionFalse, v1alpha1.ReasonSessionsDown, message}
}

// bgpCondition is the condition of the BGPConfiguration.
func (v *view) bgpCondition(c *v1alpha1.BGPConfiguration) condition {
	if missing := v.missingSecret(c.Spec.NodeMeshPassword); missing != "" {
		return condition{metav1.ConditionFalse, v1alpha1.ReasonSecretMissing, missing}
	}
	return condition{metav1.ConditionTrue, v1alpha1.ReasonAccepted, "in force"}
}

// felixCondition is the condition of a FelixConfiguration.
func (v *view) felixCondition(c *v1alpha1.FelixConfiguration) condition {
	name, ok := strings.CutPrefix(c.Name, v1alpha1.NodeNamePrefix)
	if !ok {
		return condition{metav1.ConditionTrue, v1alpha1.ReasonAccepted, "in force on all nodes"}
	}
	if _, ok := slices.BinarySearchFunc(v.nodes, name, func(n viewNode, name string) int { return cmp.Compare(n.name, name) }); !ok {
		return condition{metav1.ConditionFalse, v1alpha1.ReasonInvalid, fmt.Sprintf("there is no node %s: in force nowhere", name)}
	}
	var general v1alpha1.FelixConfigurationSpec
	for i := range v.felix {
		if v.felix[i].Name == v1alpha1.DefaultName {
			general = v.felix[i].Spec
		}
	}
	for _, f := range []struct {
		name        string
		own, common *int32
	}{
		{"vxlanPort", c.Spec.VXLANPort, general.VXLANPort},
		{"vxlanVNI", c.Spec.VXLANVNI, general.VXLANVNI},
	} {
		if f.own != nil && (f.common == nil || *f.own != *f.common) {
			return condition{metav1.ConditionFalse, v1alpha1.ReasonInvalid,
				fmt.Sprintf("%s must be the same on all nodes: set it in FelixConfiguration %s, or node %s has no VXLAN", f.name, v1alpha1.DefaultName, name)}
		}
	}
	return condition{metav1.ConditionTrue, v1alpha1.ReasonAccepted, "in force on node " + name}
}
