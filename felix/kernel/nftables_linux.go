// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// NfgenmsgLen is the length of the header of every netfilter message: family, version, resource.
const NfgenmsgLen = 4

// MonitorNFTables calls poke whenever somebody else has changed a table of family inet, or may have, until
// ctx ends. own tells the port ids of our own sockets.
func MonitorNFTables(ctx context.Context, table string, own func(portID uint32) bool, poke func()) error {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("open netlink socket: %w", err)
	}
	defer conn.Close() //nolint:errcheck // nothing was written
	// kube-proxy and others may change thousands of elements at a time; and so do we.
	if err := conn.SetReadBuffer(8 << 20); err != nil {
		return fmt.Errorf("set receive buffer: %w", err)
	}
	if err := conn.JoinGroup(unix.NFNLGRP_NFTABLES); err != nil {
		return fmt.Errorf("join nftables group: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	for {
		msgs, err := conn.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, syscall.ENOBUFS): // messages were lost: perhaps about our table
			poke()
		case err != nil:
			return fmt.Errorf("receive nftables events: %w", err)
		case slices.ContainsFunc(msgs, func(m netlink.Message) bool { return !own(m.Header.PID) && aboutTable(m, table) }):
			poke()
		}
	}
}

// aboutTable says whether an event is about a table. Its name is the first attribute of all of them.
func aboutTable(m netlink.Message, table string) bool {
	if m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || m.Header.Type&0xff == unix.NFT_MSG_NEWGEN || len(m.Data) < NfgenmsgLen {
		return false
	}
	attrs, err := netlink.UnmarshalAttributes(m.Data[NfgenmsgLen:])
	return m.Data[0] == unix.NFPROTO_INET && err == nil && slices.ContainsFunc(attrs, func(a netlink.Attribute) bool {
		return a.Type == unix.NFTA_TABLE_NAME && strings.TrimRight(string(a.Data), "\x00") == table
	})
}
