// SPDX-License-Identifier: Apache-2.0

// Package domains knows at which addresses names of domains are: it reads answers of DNS, and keeps
// what they say for as long as they say. It asks nobody, and reaches neither kernel nor API.
package domains

import (
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// Answer is what a message says about one name.
type Answer struct {
	// Names that the addresses belong to: the one that was asked for, and those that it is an alias of, in
	// the order of the chain. In lower case, without a dot at the end.
	Names []string
	Addrs []Address
}

// Address is where the names are, for a while.
type Address struct {
	IP  netip.Addr
	TTL time.Duration
}

// maxRecords is how many records of a message are read. One of 64 KiB has some 4,000.
const maxRecords = 4096

// Parse reads a message (RFC 1035 §4) that a resolver has sent; false if that is no answer with addresses.
// Only what belongs to the question counts, by the chain of aliases that begins there: a resolver that
// was told more by others, or a record that nobody has asked for, teaches nothing.
func Parse(message []byte) (Answer, bool) {
	var p dnsmessage.Parser
	header, err := p.Start(message)
	if err != nil || !header.Response || header.RCode != dnsmessage.RCodeSuccess {
		return Answer{}, false
	}
	question, err := p.Question()
	if err != nil || question.Class != dnsmessage.ClassINET || p.SkipAllQuestions() != nil {
		return Answer{}, false
	}
	r := records{aliases: map[string]alias{}, addrs: map[string][]Address{}}
	// What could be read before a message is cut off, or wrong, is not believed: none of it is.
	if !r.read(&p) {
		return Answer{}, false
	}
	a := r.follow(canonical(question.Name))
	return a, len(a.Addrs) > 0
}

type alias struct {
	of  string
	ttl time.Duration
}

// records are those of a message's answer section that say where names are.
type records struct {
	aliases map[string]alias
	addrs   map[string][]Address
}

func (r *records) read(p *dnsmessage.Parser) bool {
	for range maxRecords {
		h, err := p.AnswerHeader()
		if err == dnsmessage.ErrSectionDone {
			return true
		}
		if err != nil || r.add(h, p) != nil {
			return false
		}
	}
	return false
}

func (r *records) add(h dnsmessage.ResourceHeader, p *dnsmessage.Parser) error {
	name, ttl := canonical(h.Name), time.Duration(h.TTL)*time.Second
	switch {
	case h.Class != dnsmessage.ClassINET:
		return p.SkipAnswer()
	case h.Type == dnsmessage.TypeA:
		a, err := p.AResource()
		r.addrs[name] = append(r.addrs[name], Address{IP: netip.AddrFrom4(a.A), TTL: ttl})
		return err
	case h.Type == dnsmessage.TypeAAAA:
		a, err := p.AAAAResource()
		r.addrs[name] = append(r.addrs[name], Address{IP: netip.AddrFrom16(a.AAAA).Unmap(), TTL: ttl})
		return err
	case h.Type == dnsmessage.TypeCNAME:
		c, err := p.CNAMEResource()
		r.aliases[name] = alias{of: canonical(c.CNAME), ttl: ttl}
		return err
	}
	return p.SkipAnswer()
}

// follow walks from the name that was asked for to that which has addresses. An address is known for no
// longer than each alias that leads to it.
func (r *records) follow(name string) Answer {
	a := Answer{Names: []string{name}}
	shortest := time.Duration(1<<63 - 1)
	for range len(r.aliases) {
		next, ok := r.aliases[name]
		if !ok {
			break
		}
		name, shortest = next.of, min(shortest, next.ttl)
		a.Names = append(a.Names, name)
	}
	for _, at := range r.addrs[name] {
		a.Addrs = append(a.Addrs, Address{IP: at.IP, TTL: min(at.TTL, shortest)})
	}
	return a
}

func canonical(n dnsmessage.Name) string { return strings.ToLower(strings.TrimSuffix(n.String(), ".")) }
