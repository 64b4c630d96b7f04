// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	netutils "k8s.io/utils/net"

	"github.com/heliograph-dev/heliograph/policy"
)

// pod is a pod of any node.
type pod struct {
	podFacts
	id        policy.EndpointID
	namespace *namespace
	// workload is set if the pod is ours, in this incarnation.
	workload   *Workload
	selections []*selection
}

// podFacts is what a Pod object says.
type podFacts struct {
	uid    string
	labels map[string]string
	// absent says that the pod has no address of its own, or none any more: it uses the node's, or
	// has ended, and its address may be another's already.
	absent bool
	ips    []netip.Addr
	ports  []namedPort
}

type namedPort struct {
	name     string
	protocol policy.Protocol
	port     uint16
}

// namespace holds pods, whether the API knows it (yet, still) or not.
type namespace struct {
	name   string
	labels map[string]string
	known  bool
	pods   map[*pod]struct{}
	own    map[*pod]struct{}
}

// nameLabel is on every namespace; the API server sees to that.
const nameLabel = corev1.LabelMetadataName

func namespaceLabels(name string, labels map[string]string) map[string]string {
	if labels[nameLabel] == name {
		return labels
	}
	l := make(map[string]string, len(labels)+1)
	maps.Copy(l, labels)
	l[nameLabel] = name
	return l
}

func equalLabels(a, b map[string]string) bool { return maps.Equal(a, b) }

func readPod(obj *corev1.Pod) podFacts {
	f := podFacts{uid: uidOf(obj), labels: obj.Labels}
	f.absent = obj.Spec.HostNetwork || obj.Status.Phase == corev1.PodSucceeded || obj.Status.Phase == corev1.PodFailed
	if f.absent {
		return f
	}
	for _, ip := range obj.Status.PodIPs {
		f.ips = appendIP(f.ips, ip.IP)
	}
	if len(f.ips) == 0 {
		f.ips = appendIP(f.ips, obj.Status.PodIP)
	}
	for i := range obj.Spec.InitContainers {
		// Sidecars serve for as long as the pod does.
		if r := obj.Spec.InitContainers[i].RestartPolicy; r != nil && *r == corev1.ContainerRestartPolicyAlways {
			f.ports = appendPorts(f.ports, obj.Spec.InitContainers[i].Ports)
		}
	}
	for i := range obj.Spec.Containers {
		f.ports = appendPorts(f.ports, obj.Spec.Containers[i].Ports)
	}
	return f
}

// uidOf is the UID by which the node knows the pod. Of a static pod the API shows a mirror with a UID of its
// own; what kubelet, and so the CNI plugin, knows it by is in an annotation.
func uidOf(obj *corev1.Pod) string {
	if hash := obj.Annotations[corev1.MirrorPodAnnotationKey]; hash != "" {
		return hash
	}
	return string(obj.UID)
}

// appendIP leaves out what is no address; kubelet writes none.
func appendIP(ips []netip.Addr, text string) []netip.Addr {
	ip, ok := netip.AddrFromSlice(netutils.ParseIPSloppy(text))
	if ip = ip.Unmap(); !ok || slices.Contains(ips, ip) {
		return ips
	}
	return append(ips, ip)
}

func appendPorts(ports []namedPort, from []corev1.ContainerPort) []namedPort {
	for _, p := range from {
		protocol, ok := protocolOf(p.Protocol)
		if p.Name == "" || !ok || p.ContainerPort < 1 || p.ContainerPort > 65535 {
			continue
		}
		n := namedPort{name: p.Name, protocol: protocol, port: uint16(p.ContainerPort)}
		if !slices.Contains(ports, n) {
			ports = append(ports, n)
		}
	}
	return ports
}

// contributesLike says whether all is as before but, perhaps, the labels.
func (p *pod) contributesLike(f podFacts) bool {
	return p.uid == f.uid && p.absent == f.absent && slices.Equal(p.ips, f.ips) && slices.Equal(p.ports, f.ports)
}

// addresses are the members that the pod brings to its sets.
func (p *pod) addresses() []netip.Addr {
	switch {
	case p.absent:
		return nil
	case p.workload != nil:
		return p.workload.IPs
	}
	return p.ips
}

// introduce makes the pod known to indices, selections and sets.
func (c *Compiler) introduce(p *pod) {
	p.namespace = c.namespace(p.id.Namespace)
	p.namespace.pods[p] = struct{}{}
	if w := c.workloads[p.id]; w != nil && (w.UID == "" || w.UID == p.uid) {
		p.workload = w
		p.namespace.own[p] = struct{}{}
		c.touchEndpoint(p.id)
	}
	for _, ip := range p.addresses() {
		c.byIP[ip] = append(c.byIP[ip], p)
	}
	c.indexLabels(p)
	c.reselect(p)
}

// withdraw undoes introduce.
func (c *Compiler) withdraw(p *pod) {
	for _, s := range p.selections {
		c.leave(p, s)
	}
	p.selections = nil
	c.unindexLabels(p)
	for _, ip := range p.addresses() {
		holders := c.byIP[ip]
		if i := slices.Index(holders, p); i >= 0 {
			holders = slices.Delete(holders, i, i+1)
		}
		if len(holders) == 0 {
			delete(c.byIP, ip)
		} else {
			c.byIP[ip] = holders
		}
	}
	if p.workload != nil {
		p.workload = nil
		c.touchEndpoint(p.id)
	}
	delete(p.namespace.own, p)
	delete(p.namespace.pods, p)
	c.dropIfUnused(p.namespace)
}

func (c *Compiler) relabel(p *pod, labels map[string]string) {
	c.unindexLabels(p)
	p.labels = labels
	c.indexLabels(p)
	c.reselect(p)
}

func (c *Compiler) indexLabels(p *pod) {
	for k, v := range p.labels {
		l := label{k, v}
		if c.byLabel[l] == nil {
			c.byLabel[l] = map[*pod]struct{}{}
		}
		c.byLabel[l][p] = struct{}{}
	}
}

func (c *Compiler) unindexLabels(p *pod) {
	for k, v := range p.labels {
		l := label{k, v}
		delete(c.byLabel[l], p)
		if len(c.byLabel[l]) == 0 {
			delete(c.byLabel, l)
		}
	}
}

// namespace returns the namespace of that name, which the API may not know yet.
func (c *Compiler) namespace(name string) *namespace {
	n := c.namespaces[name]
	if n == nil {
		n = &namespace{name: name, labels: namespaceLabels(name, nil), pods: map[*pod]struct{}{}, own: map[*pod]struct{}{}}
		c.namespaces[name] = n
	}
	return n
}

func (c *Compiler) dropIfUnused(n *namespace) {
	if !n.known && len(n.pods) == 0 {
		delete(c.namespaces, n.name)
	}
}
