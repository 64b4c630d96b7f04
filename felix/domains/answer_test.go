// SPDX-License-Identifier: Apache-2.0

package domains

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/dns/dnsmessage"
)

// resource is a record: of an address, or of an alias.
func resource(name string, ttl uint32, to string) dnsmessage.Resource {
	h := dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName(name), Class: dnsmessage.ClassINET, TTL: ttl}
	ip, err := netip.ParseAddr(to)
	switch {
	case err != nil:
		return dnsmessage.Resource{Header: h, Body: &dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName(to)}}
	case ip.Is4():
		return dnsmessage.Resource{Header: h, Body: &dnsmessage.AResource{A: ip.As4()}}
	}
	return dnsmessage.Resource{Header: h, Body: &dnsmessage.AAAAResource{AAAA: ip.As16()}}
}

func packed(t testing.TB, h dnsmessage.Header, asked string, answers ...dnsmessage.Resource) []byte {
	t.Helper()
	m := dnsmessage.Message{Header: h, Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(asked), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}, Answers: answers}
	out, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

var response = dnsmessage.Header{Response: true}

func TestParse(t *testing.T) {
	at := func(ip string, seconds int) Address {
		return Address{IP: netip.MustParseAddr(ip), TTL: time.Duration(seconds) * time.Second}
	}
	for _, tt := range []struct {
		name    string
		header  dnsmessage.Header
		asked   string
		answers []dnsmessage.Resource
		want    Answer
	}{
		{"both families, in whatever case", response, "WWW.Example.com.", []dnsmessage.Resource{resource("www.example.COM.", 60, "192.0.2.1"), resource("www.example.com.", 30, "2001:db8::1")},
			Answer{Names: []string{"www.example.com"}, Addrs: []Address{at("192.0.2.1", 60), at("2001:db8::1", 30)}}},
		{"aliases, in any order, each with its own end", response, "a.example.", []dnsmessage.Resource{resource("c.example.", 60, "192.0.2.1"), resource("b.example.", 10, "c.example."), resource("a.example.", 99, "b.example.")},
			Answer{Names: []string{"a.example", "b.example", "c.example"}, Addrs: []Address{at("192.0.2.1", 10)}}},
		{"what nobody asked for", response, "a.example.", []dnsmessage.Resource{resource("a.example.", 60, "192.0.2.1"), resource("bank.example.", 60, "203.0.113.1")},
			Answer{Names: []string{"a.example"}, Addrs: []Address{at("192.0.2.1", 60)}}},
		{"an address behind an alias is not the alias's own", response, "a.example.", []dnsmessage.Resource{resource("a.example.", 60, "b.example."), resource("a.example.", 60, "192.0.2.1")}, Answer{}},
		{"a circle", response, "a.example.", []dnsmessage.Resource{resource("a.example.", 60, "b.example."), resource("b.example.", 60, "a.example.")}, Answer{}},
		{"a question", dnsmessage.Header{}, "a.example.", []dnsmessage.Resource{resource("a.example.", 60, "192.0.2.1")}, Answer{}},
		{"a refusal", dnsmessage.Header{Response: true, RCode: dnsmessage.RCodeNameError}, "a.example.", []dnsmessage.Resource{resource("a.example.", 60, "192.0.2.1")}, Answer{}},
		{"nothing", response, "a.example.", nil, Answer{}},
		{"IPv4 in IPv6", response, "a.example.", []dnsmessage.Resource{resource("a.example.", 60, "::ffff:192.0.2.1")},
			Answer{Names: []string{"a.example"}, Addrs: []Address{at("192.0.2.1", 60)}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := Parse(packed(t, tt.header, tt.asked, tt.answers...))
			if ok != (len(tt.want.Addrs) > 0) {
				t.Fatalf("got %v, %v", got, ok)
			}
			if diff := cmp.Diff(tt.want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); ok && diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestParseIsWholeOrNothing: of a message that is cut off anywhere nothing is believed.
func TestParseIsWholeOrNothing(t *testing.T) {
	m := packed(t, response, "a.example.", resource("a.example.", 60, "192.0.2.1"), resource("a.example.", 60, "2001:db8::1"))
	for n := range len(m) {
		if a, ok := Parse(m[:n]); ok {
			t.Errorf("of %d bytes of %d: %v", n, len(m), a)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(packed(f, response, "a.example.", resource("a.example.", 60, "b.example."), resource("b.example.", 60, "192.0.2.1")))
	f.Add(packed(f, response, "a.example.", resource("a.example.", 60, "2001:db8::1")))
	f.Fuzz(func(t *testing.T, message []byte) {
		a, ok := Parse(message)
		if ok && (len(a.Names) == 0 || len(a.Addrs) == 0) {
			t.Errorf("%v is no answer", a)
		}
		b := NewBook()
		b.Want([]string{"*.example", "a.example"})
		b.Learn(a, time.Unix(0, 0))
	})
}
