// SPDX-License-Identifier: Apache-2.0

package nflog

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	nflog "github.com/florianl/go-nflog/v2"
	"github.com/mdlayher/netlink"
)

// headers is how many bytes of a packet the kernel copies: IP with options or extensions, and ports.
const headers = 128

// Listen calls heard with each packet that is logged to the group in the present network namespace, until
// ctx ends. What comes faster than it is read is lost.
func Listen(ctx context.Context, group uint16, heard func(Packet)) error {
	n, err := nflog.Open(&nflog.Config{Group: group, Copymode: nflog.CopyPacket, Bufsize: headers})
	if err != nil {
		return fmt.Errorf("open NFLOG: %w", err)
	}
	defer n.Close() //nolint:errcheck // nothing was written
	failed := make(chan error, 1)
	hook := func(a nflog.Attribute) int {
		heard(read(a))
		return 0
	}
	onError := func(err error) int {
		if ctx.Err() == nil && passing(err) {
			return 0
		}
		select {
		case failed <- err:
		default:
		}
		return 1
	}
	if err := n.RegisterWithErrorFunc(ctx, hook, onError); err != nil {
		return fmt.Errorf("listen to NFLOG group %d: %w", group, err)
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("read NFLOG group %d: %w", group, err)
	}
}

// passing says whether one can go on reading: packets were lost, no more.
func passing(err error) bool {
	var op *netlink.OpError
	return errors.As(err, &op) && (op.Temporary() || errors.Is(err, syscall.ENOBUFS))
}

func read(a nflog.Attribute) Packet {
	var p Packet
	if a.Prefix != nil {
		p.Prefix = *a.Prefix
	}
	if a.InDev != nil {
		p.In = int(*a.InDev)
	}
	if a.OutDev != nil {
		p.Out = int(*a.OutDev)
	}
	if a.Payload != nil {
		p.parse(*a.Payload)
	}
	return p
}
