// SPDX-License-Identifier: Apache-2.0

package nftpolicy

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/internal/nettest"
	"github.com/heliograph-dev/heliograph/policy"
)

// updateEnv makes the test rewrite testdata. A flag would not reach the process in the namespace.
const updateEnv = "HELIOGRAPH_UPDATE"

const web, db = "hel00000000001", "hel00000000002"

// goldens are states of which testdata has what `nft list table` shows.
func goldens() map[string]*policy.State {
	return map[string]*policy.State{"base": basePolicy(), "networkpolicy": networkPolicy(), "blocks": blockPolicy(), "tiers": tieredPolicy(), "hosts": hostPolicy()}
}

func basePolicy() *policy.State {
	b := newBuilder()
	b.pod("free", web, chain(), chain())
	unknown := policy.EndpointID{Namespace: "prod", Name: "new"}
	b.Endpoints[unknown] = &policy.Endpoint{ID: unknown, Device: db, Unknown: true}
	return b.State
}

func networkPolicy() *policy.State {
	b := newBuilder()
	b.Sets["clients"] = addressSet("10.0.0.1", "fd00::1")
	b.Sets["named http"] = serviceSet(service("10.0.0.2", policy.TCP, 8080), service("fd00::2", policy.TCP, 8080))
	web4 := b.ingress("web", policy.Rule{Action: policy.Allow, Match: policy.Match{Source: in("clients"), Transport: []policy.Transport{
		to(policy.TCP, 80, 443), {Protocol: policy.TCP, DestinationPorts: policy.Ports{Named: []policy.SetID{"named http"}}},
		{Protocol: policy.UDP, DestinationPorts: policy.Ports{Ranges: []policy.PortRange{{First: 5000, Last: 5100}}}},
	}}})
	dns := b.egress("dns", policy.Rule{Action: policy.Allow, Match: policy.Match{Transport: []policy.Transport{to(policy.UDP, 53), to(policy.TCP, 53)}}})
	deny := b.ingress("deny")
	b.pod("web-1", web, chain(tier(web4)), chain(tier(dns)))
	b.pod("web-2", "hel00000000003", chain(tier(web4)), chain(tier(dns)))
	b.pod("db", db, chain(tier(deny, web4)), chain())
	return b.State
}

func blockPolicy() *policy.State {
	b := newBuilder()
	b.Sets["office"] = addressSet("192.0.2.0/24", "192.0.2.7", "2001:db8::/32")
	block := b.egress("blocks",
		policy.Rule{Action: policy.Allow, Match: policy.Match{Destination: policy.Peer{Within: []policy.Addresses{{Nets: []policy.Net{
			{CIDR: prefix("0.0.0.0/0"), Except: prefixes("10.0.0.0/8", "169.254.0.0/16")},
			{CIDR: prefix("::/0")},
		}}}}}},
		policy.Rule{Action: policy.Allow, Match: policy.Match{Destination: nets("10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16", "10.1.7.0/24")}},
		policy.Rule{Action: policy.Allow, Match: policy.Match{Destination: policy.Peer{Outside: policy.Addresses{
			Sets: []policy.SetID{"office"}, Nets: []policy.Net{{CIDR: prefix("172.16.0.0/12")}},
		}}}},
	)
	b.pod("web", web, chain(), chain(tier(block)))
	return b.State
}

func tieredPolicy() *policy.State {
	b := newBuilder()
	b.Sets["bad"] = addressSet("203.0.113.0/24")
	b.Sets["scanners"] = addressSet("198.51.100.1", "fd00::666")
	icmp := policy.ICMPMatch{HasType: true, Type: 8}
	admin := b.ingress("admin",
		policy.Rule{Action: policy.Log, Match: policy.Match{Source: in("bad", "scanners")}},
		policy.Rule{Action: policy.Deny, Match: policy.Match{Source: in("bad")}},
		policy.Rule{Action: policy.Pass, Match: policy.Match{NotTransport: []policy.Transport{{Protocol: policy.ICMP, ICMP: icmp}, to(policy.TCP, 22)}}},
	)
	audit := b.ingress("audit", policy.Rule{Action: policy.Deny})
	b.Policies[audit].Audit = true
	app := b.ingress("app", policy.Rule{Action: policy.Allow, Match: policy.Match{Family: policy.IPv6}},
		policy.Rule{Action: policy.Deny, Match: policy.Match{Transport: []policy.Transport{{DestinationPorts: policy.Ports{Ranges: []policy.PortRange{{First: 1, Last: 1023}}}}}}})
	tiers := chain(
		policy.Tier{Name: policy.AdminTier, Policies: []policy.PolicyID{audit, admin}, Default: policy.Deny},
		policy.Tier{Name: policy.DefaultTier, Policies: []policy.PolicyID{audit, app}, Default: policy.Allow},
	)
	b.pod("web", web, tiers, chain(tier(audit)))
	return b.State
}

// hostPolicy has an endpoint of the node for a device, and one for all that have none.
func hostPolicy() *policy.State {
	b := newBuilder()
	b.Sets["admins"] = addressSet("192.0.2.7", "198.51.100.0/24", "2001:db8::7")
	b.failsafes(
		policy.Rule{Action: policy.Allow, Match: policy.Match{Transport: []policy.Transport{to(policy.UDP, 4789, 3784)}}},
		policy.Rule{Action: policy.Allow, Match: policy.Match{Source: nets("10.0.0.0/8"), Transport: []policy.Transport{to(policy.TCP, 22)}}},
	)
	admin := b.ingress("admin", policy.Rule{Action: policy.Allow, Match: policy.Match{Source: in("admins"), Transport: []policy.Transport{to(policy.TCP, 9100)}}})
	out := b.egress("out", policy.Rule{Action: policy.Deny, Match: policy.Match{Destination: in("admins")}}, policy.Rule{Action: policy.Pass})
	rest := b.ingress("rest", policy.Rule{Action: policy.Allow, Match: policy.Match{Family: policy.IPv6}})
	b.host("eth0", hostChain(tier(admin)), hostChain(tier(out)))
	b.host(policy.AnyDevice, hostChain(tier(rest)), chain())
	return b.State
}

func TestGolden(t *testing.T) {
	for file, state := range goldens() {
		t.Run(file, func(t *testing.T) {
			nettest.Run(t, func(t *testing.T) {
				k := open(t)
				d := New(k, quiet())
				apply(t, d, state)
				noDrift(t, d)
				got := list(t)
				path := filepath.Join("testdata", file+".nft")
				if os.Getenv(updateEnv) == "1" {
					if err := os.WriteFile(path, []byte(got), 0o644); err != nil { //nolint:gosec // not secret
						t.Fatal(err)
					}
				}
				want, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(string(want), got); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
			})
		})
	}
}

func open(t *testing.T) *Kernel {
	t.Helper()
	k, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.Close() })
	return k
}

// noDrift checks that the kernel holds what the driver thinks.
func noDrift(t *testing.T, d *Table) {
	t.Helper()
	if drift := driftOf(t, d); drift != "" {
		t.Errorf("drift: %s", drift)
	}
}

// driftOf reads the kernel, and says where it departs from what a driver in sync thinks; that does not learn
// of it.
func driftOf(t *testing.T, d *Table) string {
	t.Helper()
	a, err := d.handle.Read(d.objects.ruleset())
	switch {
	case err != nil:
		t.Fatal(err)
	case !a.Exists:
		return "no table"
	case a.Odd != "":
		return "odd: " + a.Odd
	}
	o := newObjects()
	for name, s := range d.objects.sets {
		o.sets[name] = &setObject{Set: s.Set, all: s.all}
	}
	for name, c := range d.objects.chains {
		o.chains[name] = &chainObject{want: c.want}
	}
	return o.adopt(a)
}

// list is what nft shows of the table, but for counters.
func list(t *testing.T) string {
	t.Helper()
	out := nettest.Cmd(t, "nft", "-nn", "list", "table", "inet", desired.NFTPolicyTable)
	out = regexp.MustCompile(`counter packets \d+ bytes \d+`).ReplaceAllString(out, "counter")
	return strings.ReplaceAll(out, "\t", "    ")
}
