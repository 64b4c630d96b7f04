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

// kinds is a set of kinds of entities.
type kinds uint8

const (
	pods kinds = 1 << iota
	networkSets
	nodes
	endpointSlices
	hosts
	domains
)

// entity is what has labels to be selected by, and addresses to be found at: a pod of any node, a set of
// networks, a node, a slice of a service's endpoints, a name of a domain,
// a host endpoint.
type entity struct {
	facts
	key       entityKey
	namespace *namespace
	account   *account // pods' only
	// workload is set if the pod is ours, in this incarnation, or the host endpoint is this node's.
	workload   *workload
	selections []*selection
}

type entityKey struct {
	kind kinds
	policy.EndpointID
}

func podKey(id policy.EndpointID) entityKey { return entityKey{pods, id} }

// endpointKey is the key of what may be an endpoint: a pod or a host.
func endpointKey(id policy.EndpointID) entityKey {
	if id.Host {
		return entityKey{hosts, id}
	}
	return podKey(id)
}

// facts is what the object of an entity says.
type facts struct {
	uid    string
	labels map[string]string
	// runsAs is the name of a pod's service account.
	runsAs string
	// absent says that a pod has no address of its own, or none any more: it uses the node's, or
	// has ended, and its address may be another's already.
	absent   bool
	prefixes []netip.Prefix
	ports    []namedPort
}

type namedPort struct {
	name     string
	protocol policy.Protocol
	port     uint16
}

// workload is a Workload with its addresses as sets want them.
type workload struct {
	Workload
	prefixes []netip.Prefix
}

// namespace holds entities, whether the API knows it (yet, still) or not. The one without a name holds
// those that are in none.
type namespace struct {
	name     string
	labels   map[string]string
	known    bool
	entities map[*entity]struct{}
	own      map[*entity]struct{}
	accounts map[string]*account
}

// account is a service account of a namespace, whether the API knows it or not.
type account struct {
	labels map[string]string
	known  bool
	pods   int
}

// nameLabel is on every namespace; the API server sees to that. Service accounts have it here, so that
// they can be selected by name in the same way.
const nameLabel = corev1.LabelMetadataName

func withName(name string, labels map[string]string) map[string]string {
	if labels[nameLabel] == name {
		return labels
	}
	l := make(map[string]string, len(labels)+1)
	maps.Copy(l, labels)
	l[nameLabel] = name
	return l
}

func equalLabels(a, b map[string]string) bool { return maps.Equal(a, b) }

func readPod(obj *corev1.Pod) facts {
	f := facts{uid: uidOf(obj), labels: obj.Labels, runsAs: obj.Spec.ServiceAccountName}
	f.absent = obj.Spec.HostNetwork || obj.Status.Phase == corev1.PodSucceeded || obj.Status.Phase == corev1.PodFailed
	if f.absent {
		return f
	}
	for _, ip := range obj.Status.PodIPs {
		f.prefixes = appendIP(f.prefixes, ip.IP)
	}
	if len(f.prefixes) == 0 {
		f.prefixes = appendIP(f.prefixes, obj.Status.PodIP)
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
func appendIP(list []netip.Prefix, text string) []netip.Prefix {
	ip, ok := netip.AddrFromSlice(netutils.ParseIPSloppy(text))
	if !ok {
		return list
	}
	return appendPrefix(list, host(ip.Unmap()))
}

func appendPrefix(list []netip.Prefix, p netip.Prefix) []netip.Prefix {
	if slices.Contains(list, p) {
		return list
	}
	return append(list, p)
}

func host(ip netip.Addr) netip.Prefix { return netip.PrefixFrom(ip, ip.BitLen()) }

func appendPorts(ports []namedPort, from []corev1.ContainerPort) []namedPort {
	for _, p := range from {
		if p.Name != "" {
			ports = appendPort(ports, p.Name, p.Protocol, p.ContainerPort)
		}
	}
	return ports
}

func appendPort(ports []namedPort, name string, written corev1.Protocol, number int32) []namedPort {
	protocol, ok := protocolOf(written)
	n := namedPort{name: name, protocol: protocol, port: uint16(number)}
	if !ok || number < 1 || number > 65535 || slices.Contains(ports, n) {
		return ports
	}
	return append(ports, n)
}

// contributesLike says whether all is as before but, perhaps, the labels.
func (e *entity) contributesLike(f facts) bool {
	return e.uid == f.uid && e.absent == f.absent && e.runsAs == f.runsAs && slices.Equal(e.prefixes, f.prefixes) &&
		slices.Equal(e.ports, f.ports)
}

// addresses are the members that the entity brings to its sets.
func (e *entity) addresses() []netip.Prefix {
	switch {
	case e.absent:
		return nil
	case e.workload != nil:
		return e.workload.prefixes
	}
	return e.prefixes
}

// setEntity adds or replaces an entity.
func (c *Compiler) setEntity(key entityKey, f facts) {
	e := c.entities[key]
	switch {
	case e == nil:
		e = &entity{key: key, facts: f}
		c.entities[key] = e
		c.introduce(e)
	case !e.contributesLike(f):
		c.withdraw(e)
		e.facts = f
		c.introduce(e)
	case !equalLabels(e.labels, f.labels):
		c.relabel(e, f.labels)
	}
}

func (c *Compiler) removeEntity(key entityKey) {
	if e := c.entities[key]; e != nil {
		c.withdraw(e)
		delete(c.entities, key)
	}
}

// introduce makes the entity known to indices, selections and sets.
func (c *Compiler) introduce(e *entity) {
	e.namespace = c.namespace(e.key.Namespace)
	e.namespace.entities[e] = struct{}{}
	if e.key.kind == pods {
		e.account = e.namespace.account(e.runsAs)
		e.account.pods++
	}
	if w := c.workloads[e.key.EndpointID]; w != nil && e.key == endpointKey(e.key.EndpointID) && (w.UID == "" || w.UID == e.uid) {
		e.workload = w
		e.namespace.own[e] = struct{}{}
		c.touchEndpoint(e.key.EndpointID)
	}
	for _, p := range e.addresses() {
		c.byPrefix[p] = append(c.byPrefix[p], e)
	}
	c.indexLabels(e)
	c.reselect(e)
}

// withdraw undoes introduce.
func (c *Compiler) withdraw(e *entity) {
	for _, s := range e.selections {
		c.leave(e, s)
	}
	e.selections = nil
	c.unindexLabels(e)
	for _, p := range e.addresses() {
		holders := c.byPrefix[p]
		if i := slices.Index(holders, e); i >= 0 {
			holders = slices.Delete(holders, i, i+1)
		}
		if len(holders) == 0 {
			delete(c.byPrefix, p)
		} else {
			c.byPrefix[p] = holders
		}
	}
	if e.workload != nil {
		e.workload = nil
		c.touchEndpoint(e.key.EndpointID)
	}
	if e.account != nil {
		e.account.pods--
		e.namespace.dropAccountIfUnused(e.runsAs)
		e.account = nil
	}
	delete(e.namespace.own, e)
	delete(e.namespace.entities, e)
	c.dropIfUnused(e.namespace)
}

func (c *Compiler) relabel(e *entity, labels map[string]string) {
	c.unindexLabels(e)
	e.labels = labels
	c.indexLabels(e)
	c.reselect(e)
}

func (c *Compiler) indexLabels(e *entity) {
	for k, v := range e.labels {
		l := label{k, v}
		if c.byLabel[l] == nil {
			c.byLabel[l] = map[*entity]struct{}{}
		}
		c.byLabel[l][e] = struct{}{}
	}
}

func (c *Compiler) unindexLabels(e *entity) {
	for k, v := range e.labels {
		l := label{k, v}
		delete(c.byLabel[l], e)
		if len(c.byLabel[l]) == 0 {
			delete(c.byLabel, l)
		}
	}
}

// namespace returns the namespace of that name, which the API may not know yet.
func (c *Compiler) namespace(name string) *namespace {
	n := c.namespaces[name]
	if n == nil {
		n = &namespace{name: name, entities: map[*entity]struct{}{}, own: map[*entity]struct{}{}, accounts: map[string]*account{}}
		if name != "" {
			n.labels = withName(name, nil)
		}
		c.namespaces[name] = n
	}
	return n
}

func (c *Compiler) dropIfUnused(n *namespace) {
	if !n.known && len(n.entities) == 0 && len(n.accounts) == 0 {
		delete(c.namespaces, n.name)
	}
}

// account returns the service account of that name, which the API may not know yet.
func (n *namespace) account(name string) *account {
	a := n.accounts[name]
	if a == nil {
		a = &account{labels: withName(name, nil)}
		n.accounts[name] = a
	}
	return a
}

func (n *namespace) dropAccountIfUnused(name string) {
	if a := n.accounts[name]; !a.known && a.pods == 0 {
		delete(n.accounts, name)
	}
}

// changeAccount tries the pods that run as the account again. Accounts change seldom: to walk their
// namespace is cheaper than to keep their pods.
func (c *Compiler) changeAccount(namespace, name string, labels map[string]string, known bool) {
	n := c.namespace(namespace)
	a := n.account(name)
	if a.known != known || !equalLabels(a.labels, labels) {
		a.known, a.labels = known, labels
		for e := range n.entities {
			if e.account == a {
				c.reselect(e)
			}
		}
	}
	n.dropAccountIfUnused(name)
	c.dropIfUnused(n)
}
