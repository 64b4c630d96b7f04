// SPDX-License-Identifier: Apache-2.0

package nexthop

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/heliograph-dev/heliograph/felix/desired"
	"github.com/heliograph-dev/heliograph/felix/kernel"
)

const (
	nhmsgLen = 8  // struct nhmsg: family, scope, protocol, reserved, flags
	nhaFDB   = 11 // NHA_FDB
)

// Kernel is the Handle to the kernel.
type Kernel struct {
	conn  *kernel.Conn
	batch kernel.Batch
}

var _ Handle = (*Kernel)(nil)

// NewKernel returns a handle that works through conn.
func NewKernel(conn *kernel.Conn) *Kernel { return &Kernel{conn: conn} }

// ListNexthops reads all nexthop objects, ours and foreign.
func (k *Kernel) ListNexthops(ctx context.Context) (iter.Seq[Entry], error) {
	k.batch.Reset()
	k.batch.Begin(unix.RTM_GETNEXTHOP, 0)
	k.batch.Raw(make([]byte, nhmsgLen)...)
	dump, err := k.conn.Dump(ctx, &k.batch, nil)
	if err != nil && !errors.Is(err, kernel.ErrInterrupted) {
		return nil, err
	}
	return func(yield func(Entry) bool) {
		for m := range kernel.Messages(dump) {
			if m.Type != unix.RTM_NEWNEXTHOP {
				continue
			}
			if e, ok := parse(m.Body, k.conn.LinkName); ok && !yield(e) {
				return
			}
		}
	}, err
}

// CreateNexthops creates objects whose ids must be free.
func (k *Kernel) CreateNexthops(ctx context.Context, nhs []desired.Nexthop) []error {
	return k.write(ctx, nhs, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
}

// ReplaceNexthops replaces objects, or creates them if they are gone, one message each.
func (k *Kernel) ReplaceNexthops(ctx context.Context, nhs []desired.Nexthop) []error {
	return k.write(ctx, nhs, unix.NLM_F_CREATE|unix.NLM_F_REPLACE)
}

// DeleteNexthops deletes objects.
func (k *Kernel) DeleteNexthops(ctx context.Context, ids []desired.NexthopID) []error {
	k.batch.Reset()
	for _, id := range ids {
		k.batch.Begin(unix.RTM_DELNEXTHOP, 0)
		k.batch.Raw(make([]byte, nhmsgLen)...)
		k.batch.AttrUint32(unix.NHA_ID, uint32(id))
	}
	return k.conn.Execute(ctx, &k.batch)
}

// write sends what can be said; an object on a device that does not exist fails on the spot.
func (k *Kernel) write(ctx context.Context, nhs []desired.Nexthop, flags uint16) []error {
	k.batch.Reset()
	errs := make([]error, len(nhs)) // first of those that were not sent
	for i, n := range nhs {
		errs[i] = k.add(n, flags)
	}
	results := k.conn.Execute(ctx, &k.batch)
	for i := range errs {
		if errs[i] == nil && results != nil {
			errs[i], results = results[0], results[1:]
		}
	}
	return errs
}

func (k *Kernel) add(n desired.Nexthop, flags uint16) error {
	if n.Group != "" {
		k.batch.Begin(unix.RTM_NEWNEXTHOP, flags)
		k.batch.Raw(unix.AF_UNSPEC, 0, desired.Protocol, 0, 0, 0, 0, 0)
		k.batch.AttrUint32(unix.NHA_ID, uint32(n.ID))
		k.batch.Attr(unix.NHA_GROUP, encodeGroup(n.Members()))
		return nil
	}
	if !n.Gateway.IsValid() {
		return fmt.Errorf("no gateway: %w", unix.EINVAL)
	}
	index, err := k.conn.LinkIndex(n.Device)
	if err != nil {
		return err
	}
	family, nhFlags := byte(unix.AF_INET), uint32(0)
	if n.Gateway.Is6() {
		family = unix.AF_INET6
	}
	if n.OnLink {
		nhFlags = unix.RTNH_F_ONLINK
	}
	k.batch.Begin(unix.RTM_NEWNEXTHOP, flags)
	k.batch.Raw(binary.NativeEndian.AppendUint32([]byte{family, 0, desired.Protocol, 0}, nhFlags)...)
	k.batch.AttrUint32(unix.NHA_ID, uint32(n.ID))
	k.batch.AttrUint32(unix.NHA_OIF, uint32(index))
	k.batch.AttrAddr(unix.NHA_GATEWAY, n.Gateway)
	return nil
}

// encodeGroup makes the array of struct nexthop_grp (id, weight-1, reserved), all of weight 1.
func encodeGroup(ids []desired.NexthopID) []byte {
	b := make([]byte, 0, 8*len(ids))
	for _, id := range ids {
		b = binary.NativeEndian.AppendUint32(b, uint32(id))
		b = append(b, 0, 0, 0, 0)
	}
	return b
}

// decodeGroup reads such an array. A group with weights is none that we make: the odd byte at its
// end makes it differ from each of ours, so that it gets replaced.
func decodeGroup(b []byte) string {
	var ids []desired.NexthopID
	weighted := false
	for ; len(b) >= 8; b = b[8:] {
		ids = append(ids, desired.NexthopID(binary.NativeEndian.Uint32(b)))
		weighted = weighted || b[4] != 0 || b[5] != 0
	}
	if weighted || len(ids) == 0 {
		return desired.EncodeGroup(ids) + "w"
	}
	return desired.EncodeGroup(ids)
}

// parse reads a nhmsg and its attributes. What we would not make of a single one (a blackhole, an
// encapsulation) leaves no gateway, and so differs from all of ours.
func parse(body []byte, linkName func(int) (string, error)) (Entry, bool) {
	if len(body) < nhmsgLen {
		return Entry{}, false
	}
	e := Entry{Protocol: body[2]}
	n := &e.Nexthop
	strange := false
	oif := 0
	for typ, v := range kernel.Attributes(body[nhmsgLen:]) {
		switch typ {
		case unix.NHA_ID:
			n.ID = desired.NexthopID(kernel.Uint32(v))
		case unix.NHA_GROUP:
			n.Group = decodeGroup(v)
		case unix.NHA_OIF:
			oif = int(kernel.Uint32(v))
		case unix.NHA_GATEWAY:
			n.Gateway = kernel.Addr(v)
		case unix.NHA_BLACKHOLE, unix.NHA_ENCAP_TYPE, nhaFDB:
			strange = true
		}
	}
	if n.ID == 0 {
		return Entry{}, false
	}
	if n.Group == "" {
		n.OnLink = binary.NativeEndian.Uint32(body[4:])&unix.RTNH_F_ONLINK != 0
		if e.Protocol == desired.Protocol {
			n.Device, _ = linkName(oif) // gone meanwhile: the nexthop goes too
		}
	}
	if strange {
		n.Gateway = netip.Addr{}
	}
	return e, true
}
