// SPDX-License-Identifier: Apache-2.0

package rule

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/internal/nettest"
)

// real is the kernel of a namespace, harmed by commands.
type real struct {
	*Kernel
	t *testing.T
}

func newReal(t *testing.T) real {
	k, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	return real{k, t}
}

func (r real) ip(verb string, d desired.Rule, more ...string) {
	r.t.Helper()
	args := fmt.Sprintf("-%d rule %s pref %d fwmark %d table %d", d.Family, verb, d.Priority, d.Mark, d.Table)
	nettest.Cmd(r.t, "ip", append(strings.Fields(args), more...)...)
}

func (r real) rule(d desired.Rule, protocol uint8, extra string) {
	r.t.Helper()
	r.ip("add", d, append(strings.Fields(extra), "protocol", fmt.Sprint(protocol))...)
}

func (r real) remove(d desired.Rule) { r.t.Helper(); r.ip("del", d) }

func TestKernel(t *testing.T) {
	for _, c := range cases {
		t.Run(strings.NewReplacer(" ", "_", ",", "", "'", "").Replace(c.name), func(t *testing.T) {
			nettest.Run(t, func(t *testing.T) {
				r := newReal(t)
				c.run(t, r, New(r, quiet))
			})
		})
	}
}

// A mark in part of its bits is another mark: all are compared.
func TestKernelComparesAllBits(t *testing.T) {
	nettest.Run(t, func(t *testing.T) {
		r := newReal(t)
		apply(t, New(r, quiet), all)
		for _, v := range []string{"-4", "-6"} {
			to := map[string]string{"-4": "10.9.0.1", "-6": "2001:db8:9::1"}[v]
			nettest.Cmd(t, "ip", v, "route", "add", "blackhole", "default", "table", fmt.Sprint(desired.TableVXLAN))
			nettest.Cmd(t, "ip", v, "route", "add", "local", to, "dev", "lo", "table", "main")
			for mark, caught := range map[uint32]bool{desired.MarkVXLAN: true, desired.MarkVXLAN | 1<<31: false, desired.MarkVXLAN & 0xff: false} {
				out, _ := exec.Command("ip", v, "route", "get", to, "mark", fmt.Sprint(mark)).CombinedOutput()
				if got := !strings.Contains(string(out), "dev lo"); got != caught {
					t.Errorf("mark %#x to %s: %q; want it caught: %v", mark, to, out, caught)
				}
			}
		}
	})
}
