// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/heliograph-dev/heliograph/api/v1alpha1"
	"github.com/heliograph-dev/heliograph/policy"
)

func (r *reader) family(version *int32, path *field.Path) policy.Family {
	switch {
	case version == nil:
		return policy.AnyFamily
	case *version == 4:
		return policy.IPv4
	case *version == 6:
		return policy.IPv6
	}
	r.invalid(path, *version, "is neither 4 nor 6")
	return policy.AnyFamily
}

func familyOfProtocol(p policy.Protocol) policy.Family {
	switch p {
	case policy.ICMP:
		return policy.IPv4
	case policy.ICMPv6:
		return policy.IPv6
	}
	return policy.AnyFamily
}

func (r *reader) protocol(p *intstr.IntOrString, path *field.Path) policy.Protocol {
	switch {
	case p == nil:
		return policy.AnyProtocol
	case p.Type == intstr.Int && p.IntVal >= 1 && p.IntVal <= 255:
		return policy.Protocol(p.IntVal)
	case p.Type == intstr.String:
		for _, known := range []policy.Protocol{policy.TCP, policy.UDP, policy.ICMP, policy.ICMPv6, policy.SCTP, policy.UDPLite} {
			if p.StrVal == known.String() {
				return known
			}
		}
	}
	r.invalid(path, p.String(), "is none of TCP, UDP, ICMP, ICMPv6, SCTP, UDPLite, and no number from 1 to 255")
	return policy.AnyProtocol
}

func (r *reader) icmp(f *v1alpha1.ICMPFields, protocol policy.Protocol, path *field.Path) policy.ICMPMatch {
	var m policy.ICMPMatch
	if f == nil {
		return m
	}
	if protocol != policy.ICMP && protocol != policy.ICMPv6 {
		r.errs = append(r.errs, field.Forbidden(path, "it needs the protocol ICMP or ICMPv6"))
	}
	if f.Type == nil && f.Code != nil {
		r.errs = append(r.errs, field.Required(path.Child("type"), "a code needs a type"))
	}
	m.HasType, m.Type = r.octet(f.Type, path.Child("type"))
	m.HasCode, m.Code = r.octet(f.Code, path.Child("code"))
	return m
}

func (r *reader) octet(n *int32, path *field.Path) (given bool, value uint8) {
	if n == nil {
		return false, 0
	}
	if *n < 0 || *n > 255 {
		r.invalid(path, *n, "is not between 0 and 255")
	}
	return true, uint8(*n)
}

// portList reads alternatives. None at all is every port, of protocols that have none too.
func (r *reader) portList(ports []intstr.IntOrString, protocol policy.Protocol, owner selector, path *field.Path) policy.Ports {
	var list policy.Ports
	if len(ports) > 0 && !protocol.HasPorts() {
		r.errs = append(r.errs, field.Forbidden(path, "they need the protocol TCP, UDP, SCTP or UDPLite"))
		return list
	}
	for i := range ports {
		at := path.Index(i)
		if p, ok := r.portRange(&ports[i], at); ok {
			list.Ranges = append(list.Ranges, p)
		} else if id, ok := r.portName(ports[i].StrVal, protocol, owner, at); ok {
			list.Named = append(list.Named, id)
		}
	}
	list.Ranges, list.Named = mergeRanges(list.Ranges), distinct(list.Named)
	return list
}

// portRange reads a number, or two with a colon. ok is false for what may be a name.
func (r *reader) portRange(p *intstr.IntOrString, path *field.Path) (rng policy.PortRange, ok bool) {
	first, last := p.IntVal, p.IntVal
	if p.Type == intstr.String {
		from, to, isRange := strings.Cut(p.StrVal, ":")
		a, err := strconv.ParseUint(from, 10, 31)
		if err != nil && !isRange {
			return rng, false
		}
		b := a
		if isRange && err == nil {
			b, err = strconv.ParseUint(to, 10, 31)
		}
		if err != nil {
			r.invalid(path, p.StrVal, "is no range of ports, such as 8080:8090")
			return rng, true
		}
		first, last = int32(a), int32(b)
	}
	switch {
	case first < 0 || first > 65535 || last > 65535:
		r.invalid(path, p.String(), "is not between 0 and 65535")
	case last < first:
		r.invalid(path, p.String(), "ends before it begins")
	}
	return policy.PortRange{First: uint16(first), Last: uint16(last)}, true
}

func (r *reader) portName(name string, protocol policy.Protocol, owner selector, path *field.Path) (policy.SetID, bool) {
	if why := validation.IsValidPortName(name); len(why) > 0 {
		r.invalid(path, name, "%s", why[0])
		return "", false
	}
	if protocol == policy.UDPLite {
		r.invalid(path, name, "pods have no ports of UDPLite that have names")
		return "", false
	}
	return r.set(setSpec{selector: owner, withPorts: true, port: name, protocol: protocol}), true
}
