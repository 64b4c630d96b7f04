// SPDX-License-Identifier: Apache-2.0

package capability

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/heliograph-dev/heliograph/felix/desired"
)

var quiet = slog.New(slog.DiscardHandler)

const no = "this kernel has no such thing, or may not load the module"

func TestProbe(t *testing.T) {
	all := Result{IPIP: true, VXLAN: true, WireGuard: true, NexthopObjects: true}
	for _, c := range []struct {
		name string
		fail map[string]error // by kind, "delete" and "nexthop"
		want Result
		err  string
	}{
		{"all is there", nil, all, ""},
		{
			"modules are missing",
			map[string]error{IPIP: syscall.EOPNOTSUPP, WireGuard: syscall.EOPNOTSUPP},
			Result{VXLAN: true, NexthopObjects: true, Reasons: map[string]string{
				IPIP: no, WireGuard: no,
			}}, "",
		},
		{
			"an old kernel",
			map[string]error{"nexthop": syscall.EOPNOTSUPP},
			Result{IPIP: true, VXLAN: true, WireGuard: true, Reasons: map[string]string{
				NexthopObjects: no,
			}}, "",
		},
		{
			"no right is no answer",
			map[string]error{VXLAN: syscall.EPERM},
			Result{IPIP: true, WireGuard: true, NexthopObjects: true, Reasons: map[string]string{
				VXLAN: "not known: create link hel-cap-XXXX of kind vxlan: operation not permitted",
			}},
			"probe for vxlan: create link hel-cap-XXXX of kind vxlan: operation not permitted",
		},
		{"swept meanwhile", map[string]error{"delete": syscall.ENODEV, "delete nexthop": syscall.ENOENT}, all, ""},
		{
			"what does not go is an error",
			map[string]error{"delete nexthop": syscall.EBUSY},
			Result{IPIP: true, VXLAN: true, WireGuard: true, Reasons: map[string]string{
				NexthopObjects: "not known: delete nexthop object N: device or resource busy",
			}},
			"probe for nexthop objects: delete nexthop object N: device or resource busy",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFake(c.fail)
			got, err := ProbeWith(t.Context(), f, quiet)
			if c.want.Reasons == nil {
				c.want.Reasons = map[string]string{}
			}
			for k, v := range got.Reasons {
				got.Reasons[k] = f.anonymous(v)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
			text := ""
			if err != nil {
				text = f.anonymous(err.Error())
			}
			if text != c.err {
				t.Errorf("error = %q; want %q", text, c.err)
			}
			if c.fail["delete"] == nil && len(f.devices) > 0 || c.fail["delete nexthop"] == nil && len(f.nexthops) > 0 {
				t.Errorf("left behind: %v, %v", f.devices, f.nexthops)
			}
		})
	}
}

func TestProbeWithoutTime(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	f := newFake(nil)
	if r, err := ProbeWith(ctx, f, quiet); !errors.Is(err, context.Canceled) || r.IPIP || len(r.Reasons) != 4 || f.made > 0 {
		t.Errorf("ProbeWith() = %v, %v; %d things made", r, err, f.made)
	}
}

// fake is a kernel that can all but what it fails with.
type fake struct {
	fail     map[string]error
	devices  map[int]string
	nexthops map[desired.NexthopID]bool
	names    []string // of all that was made, to be left out of texts
	made     int
}

func newFake(fail map[string]error) *fake {
	return &fake{fail: fail, devices: map[int]string{}, nexthops: map[desired.NexthopID]bool{}}
}

func (f *fake) AddDevice(name, kind string) (int, error) {
	f.names = append(f.names, name)
	if err := f.fail[kind]; err != nil {
		return 0, err
	}
	f.made++
	f.devices[f.made] = name
	return f.made, nil
}

func (f *fake) DeleteDevice(index int) error {
	if err := f.fail["delete"]; err != nil {
		return err
	}
	delete(f.devices, index)
	return nil
}

func (f *fake) AddNexthop(_ context.Context, id desired.NexthopID) error {
	if err := f.fail["nexthop"]; err != nil {
		return err
	}
	if id&(1<<31) == 0 {
		return syscall.EINVAL
	}
	f.made++
	f.nexthops[id] = true
	return nil
}

func (f *fake) DeleteNexthop(_ context.Context, id desired.NexthopID) error {
	if err := f.fail["delete nexthop"]; err != nil {
		return err
	}
	delete(f.nexthops, id)
	return nil
}

// anonymous leaves out what was drawn by lot.
func (f *fake) anonymous(s string) string {
	for _, n := range f.names {
		s = strings.ReplaceAll(s, n, Prefix+"XXXX")
	}
	words := strings.Fields(s)
	for i, w := range words {
		if i > 0 && words[i-1] == "object" {
			words[i] = "N" + w[len(strings.TrimRight(w, ":")):]
		}
	}
	return strings.Join(words, " ")
}

func TestNamesAreFree(t *testing.T) {
	f := newFake(map[string]error{"delete": syscall.EBUSY})
	for range 20 {
		_, _ = ProbeWith(t.Context(), f, quiet)
	}
	if n := len(slices.Compact(slices.Sorted(maps.Values(f.devices)))); n < 50 {
		t.Errorf("%d names among 60 devices", n)
	}
}
