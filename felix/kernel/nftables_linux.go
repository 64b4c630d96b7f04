// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// NfgenmsgLen is the length of the header of every netfilter message: family, version, resource.
const NfgenmsgLen = 4

// NFTEvent is a change of something in a table of nftables.
type NFTEvent struct {
	Family byte   // NFPROTO_…
	Kind   uint16 // NFT_MSG_…
	Table  string
	Chain  string // of chains and rules
}

// OfInetTable is the events about a table of family inet.
func OfInetTable(name string) func(NFTEvent) bool {
	return func(e NFTEvent) bool { return e.Family == unix.NFPROTO_INET && e.Table == name }
}

// MonitorNFTables calls poke whenever somebody else has changed what concerns us, or may have, until ctx
// ends. own tells the port ids of our own sockets.
func MonitorNFTables(ctx context.Context, concerns func(NFTEvent) bool, own func(portID uint32) bool, poke func()) error {
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
	foreign := func(m netlink.Message) bool {
		e, ok := eventOf(m)
		return ok && concerns(e) && !own(m.Header.PID)
	}
	for {
		msgs, err := conn.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, syscall.ENOBUFS): // messages were lost: perhaps about our table
			poke()
		case err != nil:
			return fmt.Errorf("receive nftables events: %w", err)
		case slices.ContainsFunc(msgs, foreign):
			poke()
		}
	}
}

// eventOf reads an event. The table's name is the first attribute of all of them.
func eventOf(m netlink.Message) (NFTEvent, bool) {
	e := NFTEvent{Kind: uint16(m.Header.Type) & 0xff}
	if m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || e.Kind == unix.NFT_MSG_NEWGEN || len(m.Data) < NfgenmsgLen {
		return e, false
	}
	e.Family = m.Data[0]
	chain := uint16(0)
	switch e.Kind {
	case unix.NFT_MSG_NEWRULE, unix.NFT_MSG_DELRULE:
		chain = unix.NFTA_RULE_CHAIN
	case unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_DELCHAIN:
		chain = unix.NFTA_CHAIN_NAME
	}
	for typ, v := range Attributes(m.Data[NfgenmsgLen:]) {
		switch typ {
		case unix.NFTA_TABLE_NAME:
			e.Table = String(v)
		case chain:
			e.Chain = String(v)
		}
	}
	return e, e.Table != ""
}
