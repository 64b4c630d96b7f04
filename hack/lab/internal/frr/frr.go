// Package frr renders the configuration of the lab's routers. It is pure; the
// files are FRR's own per-daemon ones.
package frr

import (
	"bytes"
	_ "embed"
	"fmt"
	"net/netip"
	"text/template"

	"github.com/heliograph-dev/heliograph/hack/lab/internal/topology"
)

//go:embed bgpd.conf.tmpl
var bgpdTemplate string

var bgpd = template.Must(template.New("bgpd.conf").Parse(bgpdTemplate))

// Daemons are what runs on each router, in the order in which to start them:
// the others speak to zebra.
var Daemons = []string{"zebra", "bfdd", "bgpd"}

type router struct {
	Name     string
	ASN      uint32
	RouterID netip.Addr
	Fabric   []neighbour
	Nodes    []neighbour
	// ListenRange lets nodes open sessions over IPv6 too.
	ListenRange netip.Prefix
	ClusterASN  uint32
}

type neighbour struct {
	Name   string
	V4, V6 netip.Addr
	ASN    uint32
}

// Files returns the content of each file of /etc/frr on a router.
func Files(plan topology.Plan, h topology.Host) (map[string]string, error) {
	r := router{Name: h.Name, ASN: h.ASN, RouterID: h.Addrs()[0], ClusterASN: topology.ClusterASN}
	if h.Bridge != nil {
		r.ListenRange = h.Bridge.Addrs[1].Masked()
	}
	for _, peer := range plan.Neighbours(h.Name) {
		a := plan.AddrsToward(peer.Name, h.Name)
		n := neighbour{Name: peer.Name, V4: a[0], V6: a[1], ASN: peer.ASN}
		switch peer.Kind {
		case topology.Node:
			n.ASN = topology.ClusterASN
			r.Nodes = append(r.Nodes, n)
		case topology.Leaf, topology.Spine:
			r.Fabric = append(r.Fabric, n)
		}
	}
	var b bytes.Buffer
	if err := bgpd.Execute(&b, r); err != nil {
		return nil, fmt.Errorf("render bgpd.conf of %s: %w", h.Name, err)
	}
	plain := fmt.Sprintf("frr defaults datacenter\nhostname %s\nlog stdout informational\n", h.Name)
	return map[string]string{
		"bgpd.conf":  b.String(),
		"zebra.conf": plain,
		"bfdd.conf":  plain,
		"vtysh.conf": "no service integrated-vtysh-config\n",
	}, nil
}
