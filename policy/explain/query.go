// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/heliograph-dev/heliograph/policy"
)

// Source is where a packet comes from: one of a pod, an address, a node.
type Source struct {
	Pod  policy.EndpointID
	IP   netip.Addr
	Node string
}

// ParseSource takes NAMESPACE/POD, an address, or node/NAME. A pod of a namespace with the name "node" is
// pod/node/NAME.
func ParseSource(s string) (Source, error) {
	if ip, err := netip.ParseAddr(s); err == nil {
		return Source{IP: ip.Unmap().WithZone("")}, nil
	}
	if node, ok := parseNode(s); ok {
		return Source{Node: node}, nil
	}
	if id, ok := parseName(strings.TrimPrefix(s, "pod/")); ok {
		return Source{Pod: id}, nil
	}
	return Source{}, fmt.Errorf("%.100q is neither NAMESPACE/POD, an address nor node/NAME", s)
}

func parseNode(s string) (string, bool) {
	node, ok := strings.CutPrefix(s, "node/")
	return node, ok && node != "" && !strings.Contains(node, "/")
}

func parseName(s string) (policy.EndpointID, bool) {
	namespace, name, ok := strings.Cut(s, "/")
	return policy.EndpointID{Namespace: namespace, Name: name}, ok && namespace != "" && name != "" && !strings.Contains(name, "/")
}

// Target is where a packet goes: one of a pod, an address, a node, a service; and a port of it.
type Target struct {
	Pod      policy.EndpointID
	IP       netip.Addr
	Node     string
	Service  policy.EndpointID
	Protocol policy.Protocol // policy.ICMP stands for that of either family
	// Port has a number or a name, if the protocol has ports.
	Port     uint16
	PortName string
}

// ParseTarget takes NAMESPACE/POD, an address, node/NAME or service/NAMESPACE/NAME, followed by :PORT, by :PORT/PROTOCOL
// or by /icmp. An IPv6 address with a port stands in brackets. A port may be a name.
func ParseTarget(s string) (Target, error) {
	var t Target
	place, err := t.cutTransport(s)
	if err != nil {
		return Target{}, fmt.Errorf("%.100q: %w", s, err)
	}
	if err := t.parsePlace(place); err != nil {
		return Target{}, fmt.Errorf("%.100q: %w", s, err)
	}
	if t.Service != (policy.EndpointID{}) && t.Protocol == policy.ICMP {
		return Target{}, fmt.Errorf("%.100q: a service answers on its ports only", s)
	}
	return t, nil
}

// cutTransport reads port and protocol off the end, and returns what stands before.
func (t *Target) cutTransport(s string) (place string, err error) {
	t.Protocol = policy.TCP
	for text, p := range map[string]policy.Protocol{"tcp": policy.TCP, "udp": policy.UDP, "sctp": policy.SCTP, "icmp": policy.ICMP} {
		if n := len(s) - len(text) - 1; n > 0 && (s[n] == '/' || s[n] == ':' && p == policy.ICMP) && strings.EqualFold(s[n+1:], text) {
			s, t.Protocol = s[:n], p
			break
		}
	}
	if t.Protocol == policy.ICMP {
		return s, nil
	}
	colon := strings.LastIndex(s, ":")
	if _, err := netip.ParseAddr(s); colon < 0 || err == nil {
		return "", errors.New("a port is needed, as in :80, :53/udp or :http, or else /icmp")
	}
	place, port := s[:colon], s[colon+1:]
	n, err := strconv.ParseUint(port, 10, 16)
	switch {
	case err == nil && n > 0:
		t.Port = uint16(n)
	case len(validation.IsValidPortName(port)) == 0:
		t.PortName = port
	default:
		return "", fmt.Errorf("%q is neither a port, between 1 and 65535, nor the name of one", port)
	}
	return place, nil
}

func (t *Target) parsePlace(s string) error {
	if inner, ok := strings.CutPrefix(s, "["); ok {
		s = strings.TrimSuffix(inner, "]")
	}
	if ip, err := netip.ParseAddr(s); err == nil {
		t.IP = ip.Unmap().WithZone("")
		return nil
	}
	node, ok := parseNode(s)
	if ok {
		t.Node = node
		return nil
	}
	for _, prefix := range []string{"service/", "svc/"} {
		if rest, is := strings.CutPrefix(s, prefix); is && strings.Contains(rest, "/") {
			if t.Service, ok = parseName(rest); ok {
				return nil
			}
		}
	}
	if t.Pod, ok = parseName(strings.TrimPrefix(s, "pod/")); ok {
		return nil
	}
	return fmt.Errorf("%q is neither NAMESPACE/POD, an address, node/NAME nor service/NAMESPACE/NAME", s)
}

// Query asks for one packet, of each family that both ends have.
type Query struct {
	From Source
	To   Target
	// MaxBackends bounds how many endpoints of a service are looked at; 0: 10.
	MaxBackends int
}

const defaultBackends = 10

// port is the target's, for people.
func (t Target) port() string {
	switch {
	case t.Protocol == policy.ICMP:
		return "ICMP echo"
	case t.PortName != "":
		return t.Protocol.String() + " port " + t.PortName
	}
	return fmt.Sprintf("%s port %d", t.Protocol, t.Port)
}
