// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
)

// Ref names an object.
type Ref struct {
	Kind      string // as Kind.String
	Namespace string
	Name      string
}

// String is "NetworkPolicy prod/web".
func (r Ref) String() string {
	if r.Namespace == "" {
		return r.Kind + " " + r.Name
	}
	return r.Kind + " " + r.Namespace + "/" + r.Name
}

// ParseRef takes KIND/NAMESPACE/NAME, or KIND/NAME for kinds of the cluster.
func ParseRef(s string) (Ref, error) {
	parts := strings.Split(s, "/")
	k, err := kindNamed(parts[0])
	switch {
	case err != nil:
		return Ref{}, err
	case slices.Contains(parts, ""), k.Cluster && len(parts) != 2, !k.Cluster && len(parts) != 3:
		form := "KIND/NAMESPACE/NAME"
		if k.Cluster {
			form = "KIND/NAME"
		}
		return Ref{}, fmt.Errorf("%.100q is not of the form %s", s, form)
	case k.Cluster:
		return Ref{Kind: k.String(), Name: parts[1]}, nil
	}
	return Ref{Kind: k.String(), Namespace: parts[1], Name: parts[2]}, nil
}

// Cluster is the objects of a cluster. Objects that were put into it are not changed afterwards.
type Cluster struct {
	objects map[string]map[Ref]Object // by kind
	sends   map[string][]netip.Addr   // by node
}

// NewCluster returns a cluster without objects.
func NewCluster() *Cluster {
	return &Cluster{objects: map[string]map[Ref]Object{}, sends: map[string][]netip.Addr{}}
}

// Clone returns a cluster with the same objects.
func (c *Cluster) Clone() *Cluster {
	out := &Cluster{objects: make(map[string]map[Ref]Object, len(c.objects)), sends: maps.Clone(c.sends)}
	for k, all := range c.objects {
		out.objects[k] = maps.Clone(all)
	}
	return out
}

// Put adds or replaces an object.
func (c *Cluster) Put(k Kind, o Object) {
	name := k.String()
	if c.objects[name] == nil {
		c.objects[name] = map[Ref]Object{}
	}
	c.objects[name][refOf(k, o)] = o
}

func refOf(k Kind, o Object) Ref {
	return Ref{Kind: k.String(), Namespace: o.GetNamespace(), Name: o.GetName()}
}

// PutList puts all objects of a list.
func (c *Cluster) PutList(k Kind, l List) error {
	return apimeta.EachListItem(l, func(o runtime.Object) error {
		typed, ok := o.(Object)
		if !ok {
			return fmt.Errorf("a list of %s holds a %T", k, o)
		}
		c.Put(k, typed)
		return nil
	})
}

// Delete removes an object, and says whether it was there.
func (c *Cluster) Delete(r Ref) bool {
	_, ok := c.objects[r.Kind][r]
	delete(c.objects[r.Kind], r)
	return ok
}

// SetNode says with which addresses a node sends its own packets to other nodes' pods.
func (c *Cluster) SetNode(name string, sends []netip.Addr) { c.sends[name] = sends }

// nodeAddresses are all that are known of each node.
func (c *Cluster) nodeAddresses() map[string][]netip.Addr {
	out := maps.Clone(c.sends)
	for _, n := range of[*corev1.Node](c, "Node") {
		texts := make([]string, 0, len(n.Status.Addresses))
		for _, a := range n.Status.Addresses {
			texts = append(texts, a.Address) // names are left out below
		}
		out[n.Name] = append(slices.Clip(out[n.Name]), parseIPs(texts)...)
	}
	return out
}

// Change is objects to put into a cluster, and others to take away.
type Change struct {
	Put    []Typed
	Delete []Ref
}

// Typed is an object with its kind.
type Typed struct {
	Kind   Kind
	Object Object
}

// Ref names the object.
func (t Typed) Ref() Ref { return refOf(t.Kind, t.Object) }

// Apply returns the cluster after a change. To delete what is not there is a mistake of who asks.
func (c *Cluster) Apply(ch Change) (*Cluster, error) {
	out := c.Clone()
	for _, r := range ch.Delete {
		if !out.Delete(r) {
			return nil, fmt.Errorf("there is no %s", r)
		}
	}
	for _, t := range ch.Put {
		out.Put(t.Kind, t.Object)
	}
	return out, nil
}

// Objects lists those of a kind, in the order of their names.
func (c *Cluster) Objects(k Kind) []Object { return of[Object](c, k.String()) }

// of lists the objects of a type, which must be the kind's, in the order of their names.
func of[T Object](c *Cluster, kind string) []T {
	all := c.objects[kind]
	out := make([]T, 0, len(all))
	for _, r := range slices.SortedFunc(maps.Keys(all), compareRefs) {
		if o, ok := all[r].(T); ok {
			out = append(out, o)
		}
	}
	return out
}

func compareRefs(a, b Ref) int {
	if c := strings.Compare(a.Namespace, b.Namespace); c != 0 {
		return c
	}
	return strings.Compare(a.Name, b.Name)
}
