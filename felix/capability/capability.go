// SPDX-License-Identifier: Apache-2.0

// Package capability finds out what the node's kernel can, by doing it: it makes a device of each kind
// that heliograph may use, and a nexthop object, and takes them away again. A version number would not
// tell: distributions leave modules out, and a container may not load them.
//
// It does so in the node's own network namespace, since a scratch one would need CAP_SYS_ADMIN, which
// the agent does not have. The devices are down, and named "hel-cap-" and four hex digits, so that
// felix/link sweeps what a crash leaves behind; the object is a blackhole with our protocol and an id
// with the highest bit, and felix/nexthop's to sweep. It owns nothing else, and nothing for longer than
// a moment.
package capability

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"syscall"

	"github.com/heliograph-dev/heliograph/felix/desired"
)

// The things that are probed, by the names that Result.Reasons has.
const (
	IPIP           = "ipip"
	VXLAN          = "vxlan"
	WireGuard      = "wireguard"
	NexthopObjects = "nexthop objects"
)

// Prefix begins the names of our scratch devices.
const Prefix = desired.LinkPrefix + "-cap-"

// Result is what the kernel can.
type Result struct {
	IPIP, VXLAN, WireGuard, NexthopObjects bool

	// Reasons says why something is missing, or that it is not known. Its keys are the constants above;
	// what is not missing has none.
	Reasons map[string]string
}

// Handle is what probing needs of the kernel. *Kernel satisfies it.
type Handle interface {
	// AddDevice makes a device of a kind, down, that has nothing in common with another but by chance,
	// and returns its index.
	AddDevice(name, kind string) (index int, err error)
	DeleteDevice(index int) error
	// AddNexthop makes a blackhole nexthop object with our protocol; EEXIST if the id is taken.
	AddNexthop(ctx context.Context, id desired.NexthopID) error
	DeleteNexthop(ctx context.Context, id desired.NexthopID) error
}

// ProbeWith finds out by a handle. An error says that something could not be found out, and that it
// counts as missing for now: the kernel refused for another reason than that it cannot.
func ProbeWith(ctx context.Context, h Handle, log *slog.Logger) (Result, error) {
	r := Result{Reasons: map[string]string{}}
	var errs []error
	probe := func(what string, can *bool, do func() error) {
		err := ctx.Err()
		if err == nil {
			err = do()
		}
		switch {
		case err == nil:
			*can = true
			return
		case isNo(err): // in words that are the same each time: they end in a status
			r.Reasons[what] = "this kernel has no such thing, or may not load the module"
		default:
			errs = append(errs, fmt.Errorf("probe for %s: %w", what, err))
			r.Reasons[what] = "not known: " + err.Error()
		}
	}
	probe(IPIP, &r.IPIP, func() error { return device(h, IPIP) })
	probe(VXLAN, &r.VXLAN, func() error { return device(h, VXLAN) })
	probe(WireGuard, &r.WireGuard, func() error { return device(h, WireGuard) })
	probe(NexthopObjects, &r.NexthopObjects, func() error { return nexthop(ctx, h) })
	log.Info("kernel probed", IPIP, r.IPIP, VXLAN, r.VXLAN, WireGuard, r.WireGuard, NexthopObjects, r.NexthopObjects)
	return r, errors.Join(errs...)
}

// isNo says whether the kernel's answer is that it cannot: it knows no such kind of device, or no such
// message. All else (EPERM, EEXIST, EBUSY, ENOBUFS) tells of the moment.
func isNo(err error) bool {
	return errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EPROTONOSUPPORT)
}

// device makes a device and takes it away; one that is gone already was swept, by felix/link.
func device(h Handle, kind string) error {
	name := fmt.Sprintf("%s%04x", Prefix, random()&0xffff)
	index, err := h.AddDevice(name, kind)
	if err != nil {
		return fmt.Errorf("create link %s of kind %s: %w", name, kind, err)
	}
	if err := h.DeleteDevice(index); err != nil && !errors.Is(err, syscall.ENODEV) {
		return fmt.Errorf("delete link %s: %w", name, err)
	}
	return nil
}

func nexthop(ctx context.Context, h Handle) error {
	id := desired.NexthopID(random() | 1<<31)
	if err := h.AddNexthop(ctx, id); err != nil {
		return fmt.Errorf("create nexthop object %d: %w", id, err)
	}
	// Also when the caller has lost patience: what is ours goes.
	if err := h.DeleteNexthop(context.WithoutCancel(ctx), id); err != nil && !errors.Is(err, syscall.ENOENT) {
		return fmt.Errorf("delete nexthop object %d: %w", id, err)
	}
	return nil
}

// random is a number that a second agent, or a former one, has hardly chosen.
func random() uint32 {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails
	return binary.NativeEndian.Uint32(b[:])
}
